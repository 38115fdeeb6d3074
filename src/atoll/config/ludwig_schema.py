"""Ludwig's file for fine-tuning language models, as far as it means something here; defaults are Ludwig's (0.10).

What is not in these models stands in `ludwig_rules`, with the reason, or is unknown to Ludwig as well.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from atoll.config.base import ConfigModel, Strings, Text, expected

_AutoOrCount = Annotated[
    Literal["auto"] | Annotated[int, Field(gt=0)],
    expected("`auto` or a whole number above 0", "write, for example, 16"),
]


def _type_alone(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


class FeaturePreprocessing(ConfigModel):
    """How the text of a feature is prepared."""

    max_sequence_length: int | None = Field(default=None, gt=0)
    """The most tokens."""


class Feature(ConfigModel):
    """A column and what it holds."""

    name: Text
    """The feature's name."""
    type: Literal["text"]
    """What the column holds."""
    column: Text | None = None
    """The column, where it is called otherwise than the feature."""
    preprocessing: FeaturePreprocessing = FeaturePreprocessing()
    """How the text is prepared."""

    @property
    def column_name(self) -> str:
        return self.column or self.name


class Prompt(ConfigModel):
    """What the model is shown."""

    template: Text | None = None
    """The prompt, with `{column}` where a column's text goes."""
    task: Text | None = None
    """What `{__task__}` stands for."""


class Adapter(ConfigModel):
    """The shape of the adapter."""

    type: Literal["lora"]
    """The kind of adapter."""
    r: int = Field(default=8, ge=1, le=256)
    """The rank."""
    alpha: int | None = Field(default=None, gt=0)
    """Twice the rank unless given."""
    dropout: float = Field(default=0.05, ge=0.0, lt=1.0)
    """The share of inputs that training drops."""
    target_modules: Annotated[
        Literal["all-linear"] | Annotated[Strings, Field(min_length=1)] | None,
        expected("a list of module names", "write, for example, `target_modules: [q_proj, v_proj]`"),
    ] = None
    """The layers to adapt."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r)."""


class Quantization(ConfigModel):
    """The base model with fewer bits."""

    bits: Literal[4, 8] = 4
    """The bits of a weight."""


class Optimizer(ConfigModel):
    """What makes a step of a gradient."""

    type: Literal["adam", "adamw", "paged_adam", "paged_adamw"] = "adam"
    """The algorithm."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """The decay of weights."""


class Scheduler(ConfigModel):
    """How the learning rate changes."""

    decay: Literal["linear", "cosine"] | None = None
    """How the rate falls."""
    warmup_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """The share of all steps in which it rises."""


class Clipping(ConfigModel):
    """What happens to long gradients."""

    clipglobalnorm: float | None = Field(default=0.5, gt=0.0)
    """The longest gradient."""


class Trainer(ConfigModel):
    """How the adapter is trained."""

    type: Literal["finetune"]
    """The kind of training."""
    learning_rate: Annotated[
        Literal["auto"] | Annotated[float, Field(gt=0.0)],
        expected("`auto` or a number above 0", "write, for example, `learning_rate: 0.0002`"),
    ] = 0.001
    """The peak rate."""
    learning_rate_scheduler: Scheduler | None = Scheduler()
    """How the rate changes."""
    epochs: int = Field(default=100, gt=0)
    """How often training sees each example."""
    train_steps: int | None = Field(default=None, gt=0)
    """Micro-batches in all, instead of epochs."""
    batch_size: _AutoOrCount = 1
    """Examples of a micro-batch."""
    gradient_accumulation_steps: _AutoOrCount = "auto"
    """Micro-batches of an optimiser step."""
    effective_batch_size: _AutoOrCount = "auto"
    """Examples of an optimiser step."""
    steps_per_checkpoint: int = Field(default=0, ge=0)
    """Micro-batches between two validation rounds; 0 validates after each epoch."""
    checkpoints_per_epoch: int = Field(default=0, ge=0)
    """Validation rounds of an epoch."""
    early_stop: int = Field(default=5, ge=-1)
    """Ends training after so many rounds without improvement; -1 never does."""
    eval_steps: int | None = Field(default=None, gt=0)
    """The most batches of a validation round."""
    eval_batch_size: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=0)] | None,
        expected("`auto` or a whole number", "write, for example, 2"),
    ] = 2
    """Examples of a batch of validation."""
    optimizer: Annotated[Optimizer, BeforeValidator(_type_alone)] = Optimizer()
    """What makes a step of a gradient."""
    gradient_clipping: Clipping | None = Clipping()
    """What happens to long gradients."""
    enable_gradient_checkpointing: bool = False
    """Computes activations twice to save memory."""


class Split(ConfigModel):
    """How the rows are divided."""

    type: Literal["random", "fixed", "stratify", "datetime", "hash"] = "random"
    """What decides where a row goes."""
    column: Text | None = None
    """The column that decides, where one does."""
    probabilities: Annotated[tuple[float, ...], Field(strict=False)] = (0.7, 0.1, 0.2)
    """The shares of train, validation and test."""


class Preprocessing(ConfigModel):
    """How the data are prepared."""

    sample_ratio: float = Field(default=1.0, gt=0.0, le=1.0)
    """The share of the rows that is used."""
    global_max_sequence_length: int | None = Field(default=None, gt=0)
    """The most tokens of prompt and answer."""
    split: Split | None = None
    """How the rows are divided."""


class Generation(ConfigModel):
    """How answers are generated."""

    max_new_tokens: int | None = Field(default=None, gt=0)
    """The most tokens of an answer."""
    do_sample: bool = True
    """Whether to sample."""
    temperature: float | None = Field(default=0.1, ge=0.0)
    """How freely."""


class LudwigFile(ConfigModel):
    """The whole file."""

    model_type: Literal["llm"]
    """The kind of model."""
    base_model: Text
    """The base model."""
    input_features: Annotated[tuple[Feature, ...], Field(strict=False, min_length=1)]
    """The column that the prompt is made of."""
    output_features: Annotated[tuple[Feature, ...], Field(strict=False, min_length=1)]
    """The column of the right answer."""
    prompt: Prompt | None = Prompt()
    """What the model is shown."""
    adapter: Annotated[Adapter, BeforeValidator(_type_alone)]
    """The shape of the adapter."""
    quantization: Quantization | None = None
    """The base model with fewer bits."""
    trainer: Trainer
    """How the adapter is trained."""
    preprocessing: Preprocessing = Preprocessing()
    """How the data are prepared."""
    generation: Generation = Generation()
    """How answers are generated."""
