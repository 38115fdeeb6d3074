"""What form a client wants its answer in, and the constraints that keep the answer to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from atoll.text.constraint import ConstraintCompiler, TokenConstraint, schema_text

if TYPE_CHECKING:
    from atoll.model.load import BaseModel

_MAX_KEPT = 64


@dataclass(frozen=True)
class JsonForm:
    """JSON for a schema; with an empty schema any object."""

    schema: Mapping[str, Any]


@dataclass(frozen=True)
class PatternForm:
    """Text that matches a regular expression as a whole."""

    pattern: str


Form = JsonForm | PatternForm


class Constraints:
    """Compiled constraints of one base model, the latest kept; may be used from any thread.

    Each tenant has its own: how long an answer takes must not tell what form another tenant has asked for.
    """

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._compiler: ConstraintCompiler | None = None
        self._kept: OrderedDict[tuple[str, type[Form], str], TokenConstraint] = OrderedDict()
        self._lock = Lock()

    def get(self, form: Form, tenant: str) -> TokenConstraint:
        """A constraint at its beginning, for one completion. Raises RequestInvalid for a form that cannot be kept."""
        key = tenant, type(form), form.pattern if isinstance(form, PatternForm) else schema_text(form.schema)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key].copy()
            if self._compiler is None:
                self._compiler = ConstraintCompiler(self._base.tokenizer, self._base.end_ids)
            compiler = self._compiler
        made = compiler.regex(form.pattern) if isinstance(form, PatternForm) else compiler.json_schema(_schema(form))
        with self._lock:
            self._kept[key] = made
            if len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
            return made.copy()


def _schema(form: JsonForm) -> Mapping[str, Any]:
    return form.schema or {"type": "object"}
