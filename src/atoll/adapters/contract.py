"""What an adapter promises (`atoll.json`): the base it belongs to, and how text becomes its prompt and its answer.

Serving reads the same template, limits and stop strings that training used, so the two can not drift apart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from atoll.config.task import GenerationConfig, PromptConfig
from atoll.errors import AdapterInvalid
from atoll.text.prompt import PromptRenderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTRACT_NAME = "atoll.json"
MAX_CONTRACT_BYTES = 1 << 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseRef(_Part):
    """The base model: its name as the user gave it, and the digest of its config and weights."""

    name: str
    digest: str
    quantization_bits: Literal[4, 8] | None = None


class TrainingRecord(_Part):
    """How the adapter was made, for the reader of its card and for whoever wants to make it again."""

    num_examples: int
    num_steps: int
    num_tokens: int
    epochs: float
    learning_rate: float
    seed: int
    train_digest: str
    validation_digest: str | None
    validation_loss: float | None
    seconds: float
    cost_usd: float
    price: str
    atoll_version: str
    created: str


class AdapterContract(_Part):
    """The whole contract; written once when the adapter is published."""

    format_version: Literal[1] = 1
    name: str
    base: BaseRef
    task: str
    description: str = ""
    licence: str = ""
    prompt: PromptConfig
    chat: bool
    input_columns: tuple[str, ...]
    target_column: str
    labels: tuple[str, ...] | None = None
    max_length: int
    generation: GenerationConfig
    metrics: tuple[str, ...] = ()
    training: TrainingRecord | None = None

    def renderer(self, tokenizer: PreTrainedTokenizerBase) -> PromptRenderer:
        """The renderer that the adapter was trained with; serving and evaluation use no other."""
        prompt = self.prompt.model_copy(update={"chat_template": self.chat})
        return PromptRenderer(tokenizer, prompt, self.input_columns, self.target_column, self.max_length)

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def read_contract(folder: Path) -> AdapterContract | None:
    """The contract of an adapter's folder; None for an adapter that was not made by Atoll. Raises AdapterInvalid."""
    path = folder / CONTRACT_NAME
    try:
        if path.stat().st_size > MAX_CONTRACT_BYTES:
            raise AdapterInvalid(f"the file is larger than {MAX_CONTRACT_BYTES} bytes", where=str(path))
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AdapterInvalid("the contract cannot be read", where=str(path), why=error.strerror) from error
    try:
        fields: dict[str, Any] = json.loads(data)
        return AdapterContract.model_validate(fields)
    except (ValidationError, ValueError, RecursionError) as error:
        raise AdapterInvalid(f"not a valid contract: {str(error)[:300]}", where=str(path)) from None
