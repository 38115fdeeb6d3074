"""A task: what the data is, how a row becomes a prompt, and how answers are scored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from atoll.config.base import ConfigModel, Name, Strings, Text, check_unique, problem, problem_at
from atoll.config.template import template_columns

UniqueStrings = Annotated[Strings, AfterValidator(check_unique)]


class PromptConfig(ConfigModel):
    """How a row becomes the text that the model completes."""

    template: Text
    """The prompt, with `{column}` where a column's text goes; `{{` and `}}` write braces."""
    system: str | None = None
    """The system message, for bases with a chat template."""
    chat_template: bool | None = None
    """Whether to send the prompt as a chat message: true, false, or null for "when the base has a chat template"."""

    @field_validator("template")
    @classmethod
    def _template_is_valid(cls, template: str) -> str:
        try:
            columns = template_columns(template)
        except ValueError as error:
            raise problem(str(error), "write a column as {column} and a literal brace as {{ or }}") from None
        if not columns:
            raise problem("uses no column", "name at least one input column as {column}")
        return template

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the template uses, each once, in order of first use."""
        return template_columns(self.template)


class GenerationConfig(ConfigModel):
    """How answers to this task are generated unless a request says otherwise."""

    max_new_tokens: int = Field(default=64, gt=0)
    """The most tokens that an answer may have."""
    stop: Strings = ()
    """Strings that end an answer; they are not part of it."""
    temperature: float = Field(default=0.0, ge=0.0)
    """0 takes the likeliest token; higher values sample more freely."""


class PartConfig(ConfigModel):
    """A share of the rows of a source, drawn by a seed: the same rows are drawn on every machine."""

    start: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Where the part begins in the drawn order, as a share of the rows."""
    end: float = Field(default=1.0, gt=0.0, le=1.0)
    """Where it ends; a part that starts there has no row in common with this one."""
    together: Strings = ()
    """Columns: rows that agree in all of them stay in one part. All columns unless given."""
    stratify: Text | None = None
    """A column, such as the label: each of its values keeps its share in every part."""
    seed: int = Field(default=0, ge=0)
    """Decides the drawn order; the parts of one file need the same one."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.start >= self.end:
            what = f"must be above `start`, which is {self.start:g}"
            raise problem_at("end", value=self.end, what=what, mend="write, for example, `{start: 0.8, end: 0.9}`")
        return self


class SourceConfig(ConfigModel):
    """Where the rows of one split come from; a bare string means `path`."""

    path: Text | None = None
    """A CSV, JSONL(.gz) or Parquet file, a glob of such files, or an `hf://` address; relative to the YAML file."""
    generated: Literal["dates", "sql", "support"] | None = None
    """One of the data generators that ship with Atoll, instead of `path`."""
    sql: Text | None = None
    """A query over the table `data`, which holds the rows of `path`."""
    # Left out of dumps where absent, so that a run which began before there were parts can be resumed.
    part: PartConfig | None = Field(default=None, exclude_if=lambda part: part is None)
    """A share of the rows of `path`, or of the query, to divide one file into splits."""

    @model_validator(mode="before")
    @classmethod
    def _string_is_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.generated is None):
            given = "neither" if self.path is None else "both"
            raise problem(f"needs exactly one of `path` and `generated`, and has {given}", "write `path: data.csv`")
        if self.sql is not None and self.path is None:
            raise problem_at("sql", value=self.sql, what="works on `path` only", mend="remove `sql`, or give a `path`")
        if self.part is not None and self.path is None:
            raise problem_at("part", value=self.part, what="works on `path` only", mend="remove `part`")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        mapping = handler.resolve_ref_schema(handler(schema))
        return {"anyOf": [{"type": "string", "minLength": 1}, mapping], "description": mapping.pop("description", "")}


class DatasetConfig(ConfigModel):
    """The splits of a task's data; without `validation`, a part of `train` is set aside for it."""

    train: SourceConfig | None = None
    """Rows to learn from."""
    validation: SourceConfig | None = None
    """Rows that decide when to stop."""
    test: SourceConfig | None = None
    """Rows to score on; never seen in training."""

    @model_validator(mode="after")
    def _any_split(self) -> Self:
        if self.train is None and self.validation is None and self.test is None:
            raise problem("names no data", "add `train: your-file.csv`")
        return self


class ExampleConfig(ConfigModel):
    """A worked example, shown where the task is described."""

    inputs: dict[str, str]
    """The text of each input column."""
    target: str
    """The right answer."""


class PublishedScores(ConfigModel):
    """Scores that others reported for this task, between 0 and 1."""

    metric: Text
    """The metric that the scores are measured with."""
    phi_2: float | None = None
    """Phi-2 (2.7 billion parameters) fine-tuned on the task."""
    gemma_2b: float | None = None
    """Gemma-2B fine-tuned on the task."""
    llama_2_7b: float | None = None
    """Llama-2-7B fine-tuned on the task."""
    mistral_7b: float | None = None
    """Mistral-7B fine-tuned on the task."""
    mistral_7b_instruct: float | None = None
    """Mistral-7B-Instruct fine-tuned on the task."""
    zephyr_7b: float | None = None
    """Zephyr-7B-beta fine-tuned on the task."""
    gpt_3_5_turbo: float | None = None
    """GPT-3.5-Turbo, prompted."""
    gpt_4: float | None = None
    """GPT-4, prompted."""
    source: Text
    """Where the scores were published."""


PUBLISHED_NAMES = {
    "gpt_4": "GPT-4",
    "gpt_3_5_turbo": "GPT-3.5-Turbo",
    "mistral_7b": "Mistral-7B tuned",
    "mistral_7b_instruct": "Mistral-7B-Instruct tuned",
    "zephyr_7b": "Zephyr-7B tuned",
    "llama_2_7b": "Llama-2-7B tuned",
    "gemma_2b": "Gemma-2B tuned",
    "phi_2": "Phi-2 tuned",
}
"""The fields of PublishedScores with the names that readers see, in the order of reports."""


def _prompt_columns(fields: dict[str, Any]) -> tuple[str, ...]:
    # A prompt that failed its own validation is absent here, and already reported.
    return fields["prompt"].columns if "prompt" in fields else ()


class TaskConfig(ConfigModel):
    """One task: its data, its prompt and its metrics."""

    name: Name
    """Small letters, digits, `.`, `_` and `-`; at most 64."""
    category: Text = "custom"
    """The group that reports list the task under."""
    description: str = ""
    """What the task asks for, in a sentence or two."""
    dataset: DatasetConfig
    """Where the rows come from."""
    prompt: PromptConfig
    """How a row becomes a prompt."""
    input_columns: UniqueStrings = Field(default_factory=_prompt_columns, min_length=1)
    """The columns that a prompt may use; those of the template unless given."""
    target_column: Text
    """The column with the right answer."""
    labels: Annotated[UniqueStrings, Field(min_length=1)] | None = None
    """All possible answers, when the task has a closed set of them."""
    metrics: UniqueStrings = Field(min_length=1)
    """The names of the metrics; the first one is the task's score."""
    generation: GenerationConfig = GenerationConfig()
    """How answers are generated."""
    example: ExampleConfig | None = None
    """A worked example."""
    published: PublishedScores | None = None
    """Scores that others reported."""
    licence: str = ""
    """The licence of the data."""

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        listed = ", ".join(f"`{column}`" for column in self.input_columns)
        for column in self.prompt.columns:
            if column not in self.input_columns:
                mend = f"use one of {listed}, or add `{column}` to `input_columns`"
                what = f"uses {{{column}}}, which is no input column"
                raise problem_at("prompt", "template", value=self.prompt.template, what=what, mend=mend)
        if self.target_column in self.input_columns:
            what = f"names `{self.target_column}`, an input column: the prompt would give the answer away"
            mend = "take it out of the prompt and of `input_columns`, or choose another target column"
            raise problem_at("target_column", value=self.target_column, what=what, mend=mend)
        return self

    @model_validator(mode="after")
    def _example_fits(self) -> Self:
        if self.example is None:
            return self
        absent = [column for column in self.prompt.columns if column not in self.example.inputs]
        if absent:
            what = f"lacks the column `{absent[0]}`, which the prompt uses"
            raise problem_at("example", "inputs", value=self.example.inputs, what=what, mend=f"add `{absent[0]}: ...`")
        if self.labels is not None and self.example.target not in self.labels:
            what = f"is {self.example.target!r}, which is none of the labels"
            mend = "use one of " + ", ".join(repr(label) for label in self.labels)
            raise problem_at("example", "target", value=self.example.target, what=what, mend=mend)
        return self
