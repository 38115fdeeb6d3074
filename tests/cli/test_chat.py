"""`atoll chat`: conversations with an engine and with a server, and the commands that begin with `/`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from atoll.adapters.catalog import AdapterCatalog
from atoll.cli.chat_session import Persona, Session, Speaker
from atoll.cli.chat_speakers import LocalSpeaker, ServerSpeaker
from atoll.cli.main import app
from atoll.errors import AdapterNotFound, AtollError, RequestInvalid, Unavailable, UsageError
from support.engines import settled
from support.servers import Served, served_world

GREEDY = {"temperature": 0.0, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_world(tmp_path_factory.mktemp("chat"), num_slots=4) as served:
        yield served


@pytest.fixture(params=["engine", "server"])
def speaker(served: Served, request: pytest.FixtureRequest) -> Speaker:
    if request.param == "engine":
        return LocalSpeaker(served.engine.base, served.engine, AdapterCatalog(served.store))
    return ServerSpeaker(served.url, None)


@pytest.fixture
def session(speaker: Speaker) -> Session:
    lines: list[str] = []
    session = Session(speaker, say=lines.append, parameters=dict(GREEDY))
    session.said = lines  # type: ignore[attr-defined]
    return session


def test_a_conversation_grows_and_is_forgotten_when_another_one_answers(session: Session) -> None:
    first = "".join(session.answer("The quick brown fox"))
    second = "".join(session.answer("and then?"))
    assert [message["content"] for message in session.messages] == ["The quick brown fox", first, "and then?", second]
    session.command("/use alpha")
    assert session.messages == []
    other = "".join(session.answer("The quick brown fox"))
    session.command("/base")
    assert "".join(session.answer("The quick brown fox")) == first != other
    session.command("/reset")
    assert session.messages == []
    session.command("/system Answer with one word only.")
    assert "".join(session.answer("The quick brown fox")) != first


def test_an_adapter_with_a_template_answers_each_input_by_itself(session: Session) -> None:
    session.command("/use sentiment")
    assert session.persona == Persona("sentiment", ("text",))
    answers = ["".join(session.answer("a fine film", {"text": "a fine film"})) for _ in range(2)]
    assert answers[0] == answers[1]
    session.command("/use compare@1")
    assert session.persona.columns == ("left", "right")


def test_engine_and_server_say_the_same(served: Served) -> None:
    speakers = [
        LocalSpeaker(served.engine.base, served.engine, AdapterCatalog(served.store)),
        ServerSpeaker(served.url, None),
    ]
    said = []
    for speaker in speakers:
        session = Session(speaker, say=lambda _: None, parameters=dict(GREEDY))
        session.persona = speaker.persona("sentiment")
        said.append("".join(session.answer("x", {"text": "Kyoto"})))
    assert said[0] == said[1]
    assert sorted(speakers[0].adapter_ids()) == sorted(speakers[1].adapter_ids())


def test_a_stopped_answer_ends_in_the_engine_and_the_conversation_goes_on(session: Session, served: Served) -> None:
    session.parameters["max_new_tokens"] = 400
    answer = session.answer("The quick brown fox")
    first = next(answer)
    with pytest.raises(KeyboardInterrupt):
        answer.throw(KeyboardInterrupt)
    assert settled(served.engine).num_running == 0
    assert session.messages[-1] == {"role": "assistant", "content": first}
    session.parameters["max_new_tokens"] = 3
    assert "".join(session.answer("go on"))


def test_a_line_that_is_refused_is_forgotten(session: Session) -> None:
    session.parameters["max_new_tokens"] = 100_000
    with pytest.raises(RequestInvalid):
        list(session.answer("hello"))
    assert session.messages == []


@pytest.mark.parametrize(
    ("line", "kind", "told"),
    [
        ("/us x", UsageError, "did you mean /use?"),
        ("/use", UsageError, "which adapter"),
        ("/use nobody", AdapterNotFound, "nobody"),
        ("/params heat=1", UsageError, "no parameter 'heat'"),
        ("/params top_k=many", UsageError, "a whole number"),
        ("/save", UsageError, "one file"),
        ("/\x1b[2J", UsageError, "no command /?[2J"),
    ],
)
def test_wrong_commands_are_told_and_change_nothing(
    session: Session, line: str, kind: type[AtollError], told: str
) -> None:
    with pytest.raises(kind) as caught:
        session.command(line)
    assert told in str(caught.value)
    assert (session.persona, session.parameters) == (Persona(""), GREEDY)


def test_parameters_are_set_and_taken_back(session: Session) -> None:
    session.command("/params top_k=5 temperature=1.5")
    assert session.parameters == GREEDY | {"top_k": 5, "temperature": 1.5}
    session.command("/params top_k= max_new_tokens=")
    assert session.parameters == {"temperature": 1.5}


def test_a_conversation_is_saved_to_a_new_file_only(session: Session, tmp_path: Path) -> None:
    "".join(session.answer("hello"))
    path = tmp_path / "my talk.json"
    session.command(f"/save '{path}'")
    assert json.loads(path.read_text())["messages"] == session.messages
    with pytest.raises(UsageError, match="something already"):
        session.command(f"/save '{path}'")


def test_lines_may_be_piped_in(served: Served) -> None:
    talk = ["/params temperature=0 max_new_tokens=4", "hello\\", "world", "/nonsense"]
    lines = "\n".join([*talk, "/use compare", "left text", "right text", "/quit", "x", ""])
    result = CliRunner().invoke(app, ["chat", "--url", served.url], input=lines, env={"ATOLL_KEY": None})
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) >= 2
    assert "there is no command /nonsense" in result.stderr
    assert "now talking to compare, which takes left, right" in result.stderr


def test_what_is_no_server_is_told(served: Served) -> None:
    for url in ("http://127.0.0.1:9", f"{served.url}/health"):
        with pytest.raises(Unavailable):
            ServerSpeaker(url, None)
    with pytest.raises(UsageError):
        ServerSpeaker("file:///etc/passwd", None)
