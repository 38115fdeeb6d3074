"""A fleet: the adapters that one YAML file tunes together over one base model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from atoll.config.base import ConfigModel, Name, Strings, Text, expected
from atoll.config.explain import did_you_mean
from atoll.errors import UsageError

_Section = TypeVar("_Section", bound=ConfigModel)


class LoraConfig(ConfigModel):
    """The shape of an adapter. Key names are PEFT's."""

    type: Literal["lora"] = "lora"
    """The kind of adapter."""
    r: int = Field(default=16, ge=1, le=256)
    """The rank of the low-rank update."""
    alpha: int | None = Field(default=None, gt=0)
    """Scales the update by alpha / r; twice the rank unless given."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """The share of an adapter's inputs that training drops."""
    target_modules: Annotated[
        Literal["all-linear"] | Annotated[Strings, Field(min_length=1)],
        expected("`all-linear` or a list of module names", "write, for example, `target_modules: [q_proj, v_proj]`"),
    ] = "all-linear"
    """The layers to adapt: `all-linear` (all but the output head), or a list of module names."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead (rank-stabilised LoRA)."""

    @property
    def lora_alpha(self) -> int:
        """Alpha, with its default filled in."""
        return 2 * self.r if self.alpha is None else self.alpha

    @property
    def scaling(self) -> float:
        """The factor that the low-rank update is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


class QuantizationConfig(ConfigModel):
    """Loads the base model's weights with fewer bits."""

    bits: Literal[4, 8]
    """4 for NF4 (QLoRA), 8 for int8."""


class AdapterTrainerConfig(ConfigModel):
    """The settings of training that each adapter may have its own of. Key names are Ludwig's."""

    learning_rate: Annotated[
        Literal["auto"] | Annotated[float, Field(gt=0)],
        expected("`auto` or a number above 0", "write, for example, `learning_rate: 0.0002`"),
    ] = "auto"
    """The peak rate; `auto` chooses by the base model's size, from 1e-3 (up to 200M parameters) to 2e-4 (from 7B)."""
    learning_rate_scheduler: Literal["cosine", "cosine_with_restarts", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up; with restarts, anew after each validation round."""
    warmup_fraction: float = Field(default=0.03, ge=0.0, lt=1.0)
    """The share of all steps in which the rate rises from 0."""
    epochs: int = Field(default=3, gt=0)
    """How often training sees each example."""
    max_steps: int | None = Field(default=None, gt=0)
    """Ends training after this many steps, even within an epoch."""
    effective_batch_size: int = Field(default=16, gt=0)
    """Examples per optimiser step."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """Longer gradients are scaled down to this norm, each adapter's by itself."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's weight decay."""
    early_stop: int | None = Field(default=3, gt=0)
    """Ends training after this many validation rounds without improvement; null never does."""
    evaluations_per_epoch: int = Field(default=2, gt=0)
    """Validation rounds in each epoch."""
    # Left out of dumps where absent, so that a run which began before this key existed can be resumed.
    evaluate_every_steps: int | None = Field(default=None, gt=0, exclude_if=lambda steps: steps is None)
    """Validation after so many steps instead, and after each epoch if that is shorter."""
    seed: int = Field(default=0, ge=0)
    """Decides the initial weights, the order of the examples and dropout."""

    def evaluate_every(self, steps_per_epoch: int) -> int:
        """Steps between two validation rounds."""
        if self.evaluate_every_steps is not None:
            return min(self.evaluate_every_steps, steps_per_epoch)
        return max(1, math.ceil(steps_per_epoch / self.evaluations_per_epoch))


class TrainerConfig(AdapterTrainerConfig):
    """How adapters are trained: fleet-wide, these settings and those that an adapter may override."""

    token_budget: int = Field(default=1024, gt=0)
    """Tokens of one forward and backward pass, of all adapters together; lower it when memory runs out."""
    gradient_checkpointing: bool = False
    """Computes activations twice to save memory."""
    checkpoint_every_steps: int = Field(default=50, gt=0)
    """Steps between two checkpoints that `atoll tune --resume` can go on from."""


class DataConfig(ConfigModel):
    """Which examples of a task are used."""

    limit: int | None = Field(default=None, gt=0)
    """The most training examples; null takes all."""
    max_tokens: int | None = Field(default=None, gt=0)
    """The most tokens in one epoch, and so what an epoch may cost: takes as many examples as stay below it."""
    validation_limit: int | None = Field(default=200, gt=0)
    """The most validation examples; null takes all."""
    seed: int = Field(default=0, ge=0)
    """Decides which examples a limit keeps."""
    max_length: int | None = Field(default=None, gt=0)
    """The most tokens of prompt and answer; null takes the 95th percentile of the task's examples."""


class AdapterEntry(ConfigModel):
    """One adapter of the fleet; what it sets goes before the fleet-wide sections."""

    task: Text
    """The name of a built-in task, or the path of a task YAML, relative to the fleet file."""
    adapter: LoraConfig = LoraConfig()
    """Overrides of the fleet-wide `adapter` section."""
    trainer: AdapterTrainerConfig = AdapterTrainerConfig()
    """Overrides of the fleet-wide `trainer` section."""
    data: DataConfig = DataConfig()
    """Overrides of the fleet-wide `data` section."""


@dataclass(frozen=True)
class FleetMember:
    """One adapter with its own settings and the fleet's merged."""

    name: str
    task_ref: str
    adapter: LoraConfig
    trainer: TrainerConfig
    data: DataConfig


class FleetConfig(ConfigModel):
    """Several adapters, tuned together over one base model."""

    base_model: Text = "smollm2-135m-instruct"
    """A hub id (`org/name@revision`), a folder, a `.gguf` file, or the alias `smollm2-135m-instruct`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The number format of the base model's weights; `auto` takes what the machine computes fastest."""
    quantization: QuantizationConfig | None = None
    """Loads the base model's weights with fewer bits."""
    adapters: dict[Name, AdapterEntry] = Field(min_length=1, json_schema_extra={"additionalProperties": False})
    """The adapters by name."""
    adapter: LoraConfig = LoraConfig()
    """The shape of all adapters."""
    trainer: TrainerConfig = TrainerConfig()
    """How all adapters are trained."""
    data: DataConfig = DataConfig()
    """Which examples all adapters use."""
    output: Text | None = None
    """The folder of the run, relative to the current one; `runs/<name of the fleet file>` unless given."""

    def only(self, names: Sequence[str]) -> FleetConfig:
        """The same fleet with these adapters only, in the file's order. Raises UsageError for a wrong name."""
        for index, name in enumerate(names):
            if name not in self.adapters:
                close = did_you_mean(name, self.adapters)
                mend = f"did you mean {close}?" if close else f"its adapters are {', '.join(self.adapters)}"
                raise UsageError(f"the fleet has no adapter {name!r}", where="--adapter", mend=mend)
            if name in names[:index]:
                raise UsageError(
                    f"the adapter {name!r} is named twice", where="--adapter", mend="name each adapter once"
                )
        return self.model_copy(update={"adapters": {name: e for name, e in self.adapters.items() if name in names}})

    def members(self) -> tuple[FleetMember, ...]:
        """The adapters in the file's order, each with the fleet-wide sections under its own."""
        return tuple(
            FleetMember(
                name=name,
                task_ref=entry.task,
                adapter=_merge(self.adapter, entry.adapter),
                trainer=_merge(self.trainer, entry.trainer),
                data=_merge(self.data, entry.data),
            )
            for name, entry in self.adapters.items()
        )


def auto_learning_rate(num_params: int) -> float:
    """The peak rate for a base of `num_params` parameters: small bases want higher ones.

    1e-3 up to 2e8 parameters, 2e-4 from 7e9 on, and between them on a straight line over both logarithms.
    """
    small, large = 2e8, 7e9
    high, low = 1e-3, 2e-4
    share = (math.log(max(num_params, 1)) - math.log(small)) / (math.log(large) - math.log(small))
    share = min(max(share, 0.0), 1.0)
    return float(high ** (1 - share) * low**share)


def _merge(fleet_wide: _Section, own: ConfigModel) -> _Section:
    """Lay the keys that `own` sets over the fleet-wide section."""
    set_keys = {name: getattr(section, name) for section in (fleet_wide, own) for name in section.model_fields_set}
    return type(fleet_wide).model_validate(set_keys)
