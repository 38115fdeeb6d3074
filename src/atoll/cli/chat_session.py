"""A conversation of `atoll chat`: who answers, what was said, the commands that begin with `/`; without a terminal."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from atoll.cli.output import plain
from atoll.errors import UsageError

PARAMETERS: Mapping[str, type[int] | type[float]] = {
    "max_new_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "repetition_penalty": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "seed": int,
}
FREE_TEMPERATURE = 0.7
"""Of answers without a contract that says something else."""
BASE = ""

HELP = """\
/use NAME            talk to this adapter (name or name@revision)
/base                talk to the bare base model
/adapters            the adapters that there are
/system TEXT         what the base is told first; without a text: nothing
/reset               forget what was said
/params KEY=VALUE    set how answers are made; without any: show it; KEY= takes it back
/save FILE           write the conversation to a new file (JSON)
/help                this
/quit                leave; Ctrl-D too
A line that ends in \\ goes on in the next. Ctrl-C stops an answer.
An adapter with a template answers each input by itself; others, and the base, hold a conversation."""


@dataclass(frozen=True)
class Persona:
    """Who answers. columns: those of the adapter's template; empty for a conversation."""

    adapter_id: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """What is to be answered: the columns of a template, or a conversation that a user's message ends."""

    adapter_id: str
    columns: Mapping[str, str] | None
    messages: tuple[Mapping[str, str], ...]
    parameters: Mapping[str, float]


class Speaker(Protocol):
    """Answers turns: an engine in this process, or a server."""

    base_name: str

    def persona(self, adapter_id: str) -> Persona:
        """Raises AdapterNotFound, and Incompatible for an adapter of another base."""

    def adapter_ids(self) -> list[str]:
        """The adapters that there are."""

    def speak(self, turn: Turn) -> Generator[str]:
        """The answer, piece by piece; closing the iterator stops it. Raises AtollError."""


@dataclass
class Session:
    """The state of a conversation. say: shows a line to the user."""

    speaker: Speaker
    say: Callable[[str], None]
    persona: Persona = field(default_factory=lambda: Persona(BASE))
    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    parameters: dict[str, float] = field(default_factory=dict)
    is_over: bool = False

    @property
    def name(self) -> str:
        return self.persona.adapter_id or self.speaker.base_name

    def answer(self, text: str, columns: Mapping[str, str] | None = None) -> Generator[str]:
        """Put in a user's line, or the columns of a template; yields the answer and notes what came of it.

        What an error or a stop leaves of an answer counts as the answer; with nothing of it the line is forgotten.
        """
        said = {"role": "user", "content": text}
        system = [{"role": "system", "content": self.system}] if self.system and columns is None else []
        history = self.messages if columns is None else []
        turn = Turn(self.persona.adapter_id, columns, (*system, *history, said), dict(self.parameters))
        pieces: list[str] = []
        try:
            with closing(self.speaker.speak(turn)) as answer:
                for piece in answer:
                    pieces.append(piece)
                    yield piece
        finally:
            if pieces:
                self.messages += [said, {"role": "assistant", "content": "".join(pieces)}]

    def command(self, line: str) -> None:
        """Do what a line that begins with `/` says. Raises UsageError and what the speaker raises."""
        word, _, rest = line[1:].strip().partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "use": self._use,
            "base": lambda _: self._become(Persona(BASE)),
            "adapters": lambda _: self.say("\n".join(self.speaker.adapter_ids()) or "there are none"),
            "system": self._set_system,
            "reset": lambda _: self._reset(),
            "params": self._set_parameters,
            "save": self._save,
            "help": lambda _: self.say(HELP),
            "quit": lambda _: self._quit(),
            "exit": lambda _: self._quit(),
        }
        if word not in commands:
            close = difflib.get_close_matches(word, commands, n=1)
            raise UsageError(
                f"there is no command /{plain(word)[:40]}", mend=f"did you mean /{close[0]}?" if close else "see /help"
            )
        commands[word](rest.strip())

    def _use(self, name: str) -> None:
        if not name:
            raise UsageError("/use which adapter?", mend="see /adapters")
        self._become(self.speaker.persona(name))

    def _become(self, persona: Persona) -> None:
        """Another one answers, who has heard nothing of what was said."""
        self.persona = persona
        self.messages.clear()
        inputs = f", which takes {', '.join(persona.columns)}" if persona.columns else ""
        self.say(f"now talking to {self.name}{inputs}")

    def _set_system(self, text: str) -> None:
        self.system = text
        note = " (an adapter with a template brings its own)" if self.persona.columns else ""
        self.say(("set" if text else "taken back") + note)

    def _reset(self) -> None:
        self.messages.clear()
        self.say("forgotten")

    def _quit(self) -> None:
        self.is_over = True

    def _set_parameters(self, text: str) -> None:
        changed = dict(self.parameters)
        for pair in text.split():
            key, _, value = pair.partition("=")
            kind = PARAMETERS.get(key)
            if kind is None:
                raise UsageError(
                    f"there is no parameter {plain(key)[:40]!r}", mend=f"there are {', '.join(PARAMETERS)}"
                )
            if not value:
                changed.pop(key, None)
                continue
            try:
                changed[key] = kind(value)
            except ValueError:
                wanted = "a whole number" if kind is int else "a number"
                raise UsageError(f"{key} must be {wanted}, not {plain(value)[:40]!r}") from None
        self.parameters = changed
        self.say(", ".join(f"{key}={value:g}" for key, value in changed.items()) or "all as the adapter or base has it")

    def _save(self, text: str) -> None:
        from atoll.files import write_atomic

        names = shlex.split(text)
        if len(names) != 1:
            raise UsageError("/save takes the name of one file", mend="write /save FILE")
        path = Path(names[0]).expanduser()
        if path.exists():
            raise UsageError("there is something already", where=str(path), mend="name another file")
        content = {
            "base_model": self.speaker.base_name,
            "adapter": self.persona.adapter_id or None,
            "system": self.system or None,
            "parameters": self.parameters,
            "messages": self.messages,
        }
        write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        self.say(f"saved {len(self.messages)} messages to {path}")
