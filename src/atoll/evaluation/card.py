"""The scores in an adapter's model card, as `model-index` of its YAML front matter, where model hubs read them."""

from __future__ import annotations

import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from atoll.adapters.store import CARD_NAME, AdapterStore, StoredAdapter
from atoll.errors import AdapterInvalid
from atoll.evaluation.outputs import ADAPTER
from atoll.evaluation.results import MemberResult, Results

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(?P<yaml>.*?)^---[ \t]*(\n|\Z)", re.DOTALL | re.MULTILINE)


def update_cards(store: AdapterStore, results: Results) -> None:
    """Write each adapter's scores into its model card; all else in the card stays. Raises AdapterInvalid."""
    for member, record in zip(results.members, results.run.members, strict=True):
        adapter = store.resolve(record.adapter_id)
        store.write_card(adapter, card_with_scores(_read_card(adapter), member, split=record.split))


def card_with_scores(card: str, member: MemberResult, *, split: str) -> str:
    """The card with its `model-index` replaced by these scores. Raises AdapterInvalid for bad front matter."""
    yaml = YAML(typ="rt")
    yaml.width = 10_000
    match = _FRONT_MATTER.match(card)
    try:
        data: Any = (yaml.load(match["yaml"]) if match else None) or {}
    except YAMLError as error:
        raise AdapterInvalid(
            "the model card's front matter is not valid YAML", where=member.name, why=str(error)
        ) from None
    if not isinstance(data, dict):
        raise AdapterInvalid("the model card's front matter is not a mapping", where=member.name)
    data["model-index"] = [{"name": member.name, "results": [_entry(member, split)]}]
    text = io.StringIO()
    yaml.dump(data, text)
    body = card[match.end() :] if match else f"\n{card}"
    return f"---\n{text.getvalue()}---\n{body}"


def _entry(member: MemberResult, split: str) -> dict[str, Any]:
    metrics = []
    for result in member.metrics:
        score = result.scores[ADAPTER]
        interval = {"low": round(score.low, 4), "high": round(score.high, 4), "num_examples": member.num_examples}
        metrics.append({"type": result.metric, "name": result.metric, "value": round(score.value, 4), "args": interval})
    return {
        "task": {"type": "text-generation"},
        "dataset": {"type": member.task, "name": member.task, "split": split},
        "metrics": metrics,
    }


def _read_card(adapter: StoredAdapter) -> str:
    path = adapter.folder / CARD_NAME
    return path.read_text(encoding="utf-8") if path.is_file() else f"# {adapter.name}\n"
