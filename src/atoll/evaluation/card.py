"""The scores in an adapter's folder, where model hubs read them.

`model-index` in the YAML front matter of the model card, and `.eval_results/<task>.yaml`, which feeds a data set's
leaderboard on the hub. The second form needs the id of a data set, so a task over other files has the first alone.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from atoll.adapters.store import CARD_NAME, AdapterStore, StoredAdapter
from atoll.errors import AdapterInvalid
from atoll.evaluation.outputs import ADAPTER, MemberRecord
from atoll.evaluation.results import MemberResult, Results
from atoll.files import write_atomic

EVAL_RESULTS = ".eval_results"
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(?P<yaml>.*?)^---[ \t]*(\n|\Z)", re.DOTALL | re.MULTILINE)


def update_cards(store: AdapterStore, results: Results) -> None:
    """Write each adapter's scores into its model card and beside it; all else stays. Raises AdapterInvalid."""
    for member, record in zip(results.members, results.run.members, strict=True):
        adapter = store.resolve(record.adapter_id)
        store.write_card(adapter, card_with_scores(_read_card(adapter), member, record))
        path = eval_results_path(adapter.folder, member.task)
        if record.hub_dataset:
            write_atomic(path, eval_results_yaml(member, record, created=results.run.created))
        else:
            path.unlink(missing_ok=True)  # that of an evaluation on the hub's data, which these are not


def card_with_scores(card: str, member: MemberResult, record: MemberRecord) -> str:
    """The card with its `model-index` replaced by these scores. Raises AdapterInvalid for bad front matter."""
    yaml = _yaml()
    match = _FRONT_MATTER.match(card)
    try:
        data: Any = (yaml.load(match["yaml"]) if match else None) or {}
    except YAMLError as error:
        raise AdapterInvalid(
            "the model card's front matter is not valid YAML", where=member.name, why=str(error)
        ) from None
    if not isinstance(data, dict):
        raise AdapterInvalid("the model card's front matter is not a mapping", where=member.name)
    data["model-index"] = [{"name": member.name, "results": [_entry(member, record)]}]
    body = card[match.end() :] if match else f"\n{card}"
    return f"---\n{_dumped(data)}---\n{body}"


def eval_results_path(folder: Path, task: str) -> Path:
    return folder / EVAL_RESULTS / f"{task}.yaml"


def eval_results_yaml(member: MemberResult, record: MemberRecord, *, created: str) -> str:
    """The score by the task's first metric, as huggingface.co/docs/hub/eval-results defines the file.

    task_id is our task's name: an id of the data set's own leaderboard, where it has one, is for its owner to give.
    """
    dataset_id, _, revision = record.hub_dataset.partition("@")
    dataset = {"id": dataset_id, "task_id": member.task} | ({"revision": revision} if revision else {})
    score = member.primary.scores[ADAPTER]
    notes = (
        f"{member.primary.metric} on {member.num_examples} examples of {record.split}, 95 % interval "
        f"[{score.low:.4f}, {score.high:.4f}], greedy decoding, by Atoll"
    )
    return _dumped([{"dataset": dataset, "value": round(score.value, 4), "date": created, "notes": notes}])


def _entry(member: MemberResult, record: MemberRecord) -> dict[str, Any]:
    metrics = []
    for result in member.metrics:
        score = result.scores[ADAPTER]
        interval = {"low": round(score.low, 4), "high": round(score.high, 4), "num_examples": member.num_examples}
        metrics.append({"type": result.metric, "name": result.metric, "value": round(score.value, 4), "args": interval})
    dataset_id, _, revision = record.hub_dataset.partition("@")
    dataset = {"type": dataset_id or member.task, "name": member.task, "split": record.split}
    return {
        "task": {"type": "text-generation"},
        "dataset": dataset | ({"revision": revision} if revision else {}),
        "metrics": metrics,
    }


def _read_card(adapter: StoredAdapter) -> str:
    path = adapter.folder / CARD_NAME
    return path.read_text(encoding="utf-8") if path.is_file() else f"# {adapter.name}\n"


def _yaml() -> YAML:
    yaml = YAML(typ="rt")
    yaml.width = 10_000
    return yaml


def _dumped(data: Any) -> str:
    text = io.StringIO()
    _yaml().dump(data, text)
    return text.getvalue()
