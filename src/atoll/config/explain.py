"""Turns pydantic's errors into problems with a place in the file and a way to mend them."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from atoll.config.base import ConfigModel
from atoll.config.yaml_tree import Node, Place, Problem

Loc = tuple[str | int, ...]

# What other tools call our keys.
_SYNONYMS = {
    "base_model_name_or_path": "base_model",
    "batch_size": "effective_batch_size",
    "gradient_clipping": "max_grad_norm",
    "license": "licence",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lr": "learning_rate",
    "lr_scheduler_type": "learning_rate_scheduler",
    "model": "base_model",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "output_dir": "output",
    "rank": "r",
    "target": "target_column",
    "train_steps": "max_steps",
}
_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


def explain(error: ValidationError, root: Node, model: type[ConfigModel]) -> list[Problem]:
    """Every problem that `error` found in the file `root` was read from, validated as `model`."""
    return [
        _explain_one(details, root, model)
        for details in error.errors(include_url=False)
        # A default that waits for another key is no problem of its own, nor a list that lacks its wrong items: those
        # are reported.
        if details["type"] != "default_factory_not_called" and not (details["type"] == "too_short" and details["input"])
    ]


def did_you_mean(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` is probably a misspelling of."""
    lowered = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return lowered[close[0]] if close else None


def place_of(root: Node, loc: Loc, *, of_key: bool = False) -> Place:
    """Where the value (or the key) at `loc` stands; the nearest place around it if the file does not write it."""
    place = root.place
    node = root
    for index, part in enumerate(loc):
        if part not in node.children:
            break
        is_last = index == len(loc) - 1
        place = node.keys[part] if of_key and is_last and part in node.keys else node.children[part].place
        node = node.children[part]
    return place


def _explain_one(details: ErrorDetails, root: Node, model: type[ConfigModel]) -> Problem:
    kind, loc, value = details["type"], details["loc"], details["input"]
    context: Mapping[str, Any] = details.get("ctx", {})
    if kind == "extra_forbidden":
        return Problem(place_of(root, loc, of_key=True), *_unknown_key(loc, model))
    if kind == "missing":
        what = f"`{loc[-1]}` is missing" + _inside(loc[:-1])
        return Problem(place_of(root, loc[:-1], of_key=True), what, f"add `{loc[-1]}: ...`{_meaning(loc, model)}")
    if loc and loc[-1] == "[key]":
        return Problem(place_of(root, loc[:-1], of_key=True), *_bad_name(str(value)))
    place = place_of(root, loc)
    name = f"`{_path(loc)}`" if loc else "the file"
    if kind == "atoll":
        return Problem(place, f"{name} {context['what']}", context["mend"])
    if kind == "literal_error":
        return Problem(place, *_not_a_choice(name, value, context["expected"]))
    if kind == "string_pattern_mismatch":
        what, mend = _bad_name(str(value))
        return Problem(place, f"{name}: {what}", mend)
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        limit = f"{words} {context[key]:g}"
        return Problem(
            place, f"{name} must be {limit}, not {_show(value)}", f"give a value {limit}{_sample(loc, model)}"
        )
    if kind in ("too_short", "string_too_short"):
        return Problem(place, f"{name} must not be empty", f"give it a value{_meaning(loc, model)}")
    if kind in _KINDS:
        what = f"{name} must be {_KINDS[kind]}, not {_show(value)}"
        return Problem(place, what, _mend_type(kind, value, _node_at(root, loc), loc, model))
    return Problem(place, f"{name}: {details['msg']}", f"give it another value{_meaning(loc, model)}")


def _unknown_key(loc: Loc, model: type[ConfigModel]) -> tuple[str, str]:
    key = str(loc[-1])
    section = _model_at(model, loc[:-1])
    known = list(section.model_fields) if section else []
    what = f"unknown key `{key}`" + _inside(loc[:-1])
    if _SYNONYMS.get(key) in known:
        return what, f"it is called `{_SYNONYMS[key]}` here"
    home = min(_homes(model, {key, _SYNONYMS.get(key, key)}), key=len, default=None)
    if home is not None:
        return what, f"`{home[-1]}` belongs {_inside(home[:-1]).strip() or 'at the top of the file'}"
    guess = did_you_mean(key, known)
    if guess:
        return what, f"did you mean `{guess}`?"
    return what, "the keys here are " + ", ".join(f"`{name}`" for name in known)


def _not_a_choice(name: str, value: Any, expected: str) -> tuple[str, str]:
    choices = [choice.strip("'") for choice in re.findall(r"'[^']*'|[\w.-]+", expected.replace(" or ", " "))]
    guess = did_you_mean(value, choices) if isinstance(value, str) else None
    listed = " or ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)
    return f"{name} must be {listed}, not {_show(value)}", f"did you mean `{guess}`?" if guess else f"use {listed}"


def _bad_name(name: str) -> tuple[str, str]:
    better = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:64]
    rule = "small letters, digits, `.`, `_` and `-`, beginning with a letter or digit, at most 64"
    return f"{_show(name)} cannot be a name", f"names are {rule}" + (f"; for example `{better}`" if better else "")


def _mend_type(kind: str, value: Any, node: Node, loc: Loc, model: type[ConfigModel]) -> str:
    if value is None:
        return f"give it a value, or remove the key{_meaning(loc, model)}"
    if kind == "string_type" and isinstance(value, dict):
        return 'put it in quotes: YAML reads an unquoted `{...}` as a mapping, so write "{column}"'
    if kind == "string_type" and node.source is not None:
        return f"put it in quotes: {json.dumps(node.source, ensure_ascii=False)}"
    if kind == "tuple_type" and node.source is not None:
        return f"write it as a list: [{node.source}]"
    if kind in ("int_type", "float_type") and isinstance(value, str) and re.fullmatch(r"[\d._]{1,40}", value):
        return "write it without quotes and without `_`"
    section = _model_at(model, loc)
    if section is not None:
        required = next((name for name, field in section.model_fields.items() if field.is_required()), None)
        first = required or next(iter(section.model_fields))
        text = node.source if node.source is not None and required else "..."
        return f"write its keys below it, indented, or `{{{first}: {text}}}`"
    return f"give {_KINDS[kind]}{_sample(loc, model)}"


def _model_at(model: type[ConfigModel], loc: Loc) -> type[ConfigModel] | None:
    """The section that stands at `loc` in a file of `model`."""
    annotation: Any = model
    for part in loc:
        annotation = _step(annotation, part)
    return next(_models(annotation), None)


def _models(annotation: Any) -> Iterator[type[ConfigModel]]:
    """The configuration models that an annotation is or, being a union, allows."""
    if isinstance(annotation, type) and issubclass(annotation, ConfigModel):
        yield annotation
    elif get_origin(annotation) not in (dict, tuple):
        for argument in get_args(annotation):
            yield from _models(argument)


def _step(annotation: Any, part: str | int) -> Any:
    """The annotation one step further down; None where there is none."""
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    for section in _models(annotation):
        if part in section.model_fields:
            return section.model_fields[str(part)].annotation
    return None


def _homes(model: type[ConfigModel], keys: set[str], above: Loc = ()) -> Iterator[Loc]:
    """All places in a file of `model` that have one of `keys`."""
    for name, field in model.model_fields.items():
        if name in keys:
            yield (*above, name)
        annotation: Any = field.annotation
        here: Loc = (*above, name)
        if get_origin(annotation) is dict:
            annotation, here = get_args(annotation)[1], (*here, "<name>")
        for section in _models(annotation):
            yield from _homes(section, keys, here)


def _field_at(loc: Loc, model: type[ConfigModel]) -> Any:
    section = _model_at(model, loc[:-1])
    return section.model_fields.get(str(loc[-1])) if section and loc else None


def _meaning(loc: Loc, model: type[ConfigModel]) -> str:
    field = _field_at(loc, model)
    return (
        f" ({field.description[0].lower()}{field.description[1:].rstrip('.')})" if field and field.description else ""
    )


def _sample(loc: Loc, model: type[ConfigModel]) -> str:
    field = _field_at(loc, model)
    if field is None or not isinstance(field.default, str | int | float):
        return ""
    return f", for example `{loc[-1]}: {json.dumps(field.default).strip(chr(34))}`"


def _node_at(root: Node, loc: Loc) -> Node:
    node = root
    for part in loc:
        node = node.children.get(part, node)
    return node


def _path(loc: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _inside(loc: Loc) -> str:
    return f" in `{_path(loc)}`" if loc else ""


def _show(value: Any) -> str:
    """A value as a user may have written it, short."""
    if isinstance(value, dict | list | tuple):
        return ("a mapping" if isinstance(value, dict) else "a list") if value else "nothing"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, bool | str | None) else repr(value)
    return text if len(text) <= 60 else text[:56] + "..." + (text[-1] if text[0] == '"' else "")
