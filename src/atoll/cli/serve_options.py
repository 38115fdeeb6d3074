"""The options of `atoll serve`, and how a dataclass of options becomes a command's parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_type_hints

import typer

from atoll.cli.loading import DType

Options = TypeVar("Options")


class AdapterSource(StrEnum):
    """Where adapters may be downloaded from."""

    HUB = "hub"
    S3 = "s3"


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Where to listen, what to serve, how much of the machine to use, and who may come in."""

    base_model: Annotated[
        str | None, typer.Option(help="Hub id, folder, .gguf file or alias; the adapters' own unless given.")
    ] = None
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")] = 3000
    store: Annotated[Path | None, typer.Option(envvar="ATOLL_STORE", help="The folder that holds the adapters.")] = None
    adapter_root: Annotated[
        list[Path] | None,
        typer.Option(help="A folder below which PEFT folders may be named by path; repeat for more."),
    ] = None
    adapter_source: Annotated[
        list[AdapterSource] | None,
        typer.Option(help="Where requests may name adapters to be downloaded from; repeat for both."),
    ] = None
    adapter_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A host, or a pattern like *.example.org, that a hub may be at; Hugging Face's unless given."
        ),
    ] = None
    private_adapter_host: Annotated[
        list[str] | None,
        typer.Option(help="A host of adapters that may have a private address and speak plain HTTP; repeat for more."),
    ] = None
    adapter_bucket: Annotated[
        list[str] | None, typer.Option(help="For s3: BUCKET or BUCKET/PREFIX that may be read; repeat for more.")
    ] = None
    hub_endpoint: Annotated[str, typer.Option(envvar="HF_ENDPOINT", help="The hub's address.")] = (
        "https://huggingface.co"
    )
    s3_endpoint: Annotated[
        str | None, typer.Option(envvar="AWS_ENDPOINT_URL", help="The address of s3; Amazon's unless given.")
    ] = None
    max_adapter_bytes: Annotated[int, typer.Option(min=1, help="Bytes that a downloaded adapter may have.")] = 1 << 30
    merge_timeout_s: Annotated[
        float,
        typer.Option(min=0, help="Seconds that mixing adapters may take; ties and dare take long for large bases."),
    ] = 60.0
    adapter_cache: Annotated[
        Path | None,
        typer.Option(help="The folder for downloaded and mixed adapters; in the user's cache unless given."),
    ] = None
    dtype: Annotated[DType, typer.Option(help="Numbers to compute with; auto: bfloat16 where the machine has it.")] = (
        "auto"
    )
    num_slots: Annotated[
        int | None,
        typer.Option(
            min=1, help="Adapters on the device at once; one for each running request, as memory allows, unless given."
        ),
    ] = None
    pin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADAPTER",
            help="An adapter to load now and keep on the device, with its later revisions; repeat for more.",
        ),
    ] = None
    max_rank: Annotated[int, typer.Option(min=1, help="The largest rank of an adapter.")] = 64
    max_batch_tokens: Annotated[int, typer.Option(min=1, help="The token budget of one step.")] = 512
    max_num_requests: Annotated[int, typer.Option(min=1, help="Requests that run at once.")] = 32
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a prompt and its answer; the base model's own unless given.")
    ] = None
    int8: Annotated[
        bool, typer.Option("--int8", help="Compute the base's linear layers in 8 bits: less memory, faster on a CPU.")
    ] = False
    kv_cache_bytes: Annotated[
        int | None, typer.Option(min=1, help="Memory of the KV cache; a share of what is free unless given.")
    ] = None
    host_adapter_bytes: Annotated[
        int | None,
        typer.Option(min=1, help="Memory for adapters beside the slots; a share of what is free unless given."),
    ] = None
    prefix_cache: Annotated[
        bool, typer.Option(help="Compute equal beginnings of prompts once (per tenant and adapter).")
    ] = True
    cuda_graphs: Annotated[
        bool, typer.Option(help="On CUDA, launch the steps of running requests as a whole instead of by kernel.")
    ] = True
    max_open_requests: Annotated[
        int, typer.Option(min=1, help="Requests that run or wait; one more is answered with 429.")
    ] = 256
    database: Annotated[
        str | None,
        typer.Option(
            envvar="ATOLL_DATABASE",
            help="Keys and usage: an SQLite file or postgresql://...; atoll.db in the data folder unless given.",
            show_envvar=True,
        ),
    ] = None
    usage_journal: Annotated[
        Path | None,
        typer.Option(
            envvar="ATOLL_USAGE_JOURNAL", help="The folder for usage on its way into the database; keep it on a disk."
        ),
    ] = None
    price_per_million_tokens: Annotated[
        float, typer.Option(min=0, help="US dollars, for the cost in `atoll keys usage`.")
    ] = 0.0
    no_keys: Annotated[bool, typer.Option("--no-keys", help="Let everybody in who reaches the address.")] = False
    allow_public: Annotated[
        bool, typer.Option("--allow-public", help="With --no-keys: listen beyond this machine all the same.")
    ] = False
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Without keys: a further name that requests may give this server; repeat for more."),
    ] = None
    drain_s: Annotated[
        float, typer.Option(min=0, help="Seconds that running requests have when the server is told to stop.")
    ] = 10.0
    ui: Annotated[bool, typer.Option(help="Show the web page to browsers.")] = True
    runs: Annotated[Path, typer.Option(help="The folder of training runs, for the web page.")] = Path("runs")
    otlp_endpoint: Annotated[
        str | None, typer.Option(help="Send traces to the OpenTelemetry collector at this address, by OTLP over HTTP.")
    ] = None
    log_format: Annotated[
        Literal["auto", "text", "json"], typer.Option(help="auto: text on a terminal, else JSON lines.")
    ] = "auto"


def takes(options: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Decorates a function of `options`: typer sees its fields as parameters, and the function's own name and help."""
    hints = get_type_hints(options, include_extras=True)
    signature = inspect.signature(options)
    parameters = [parameter.replace(annotation=hints[name]) for name, parameter in signature.parameters.items()]

    def decorate(run: Callable[[Options], None]) -> Callable[..., None]:
        @wraps(run)
        def command(**values: object) -> None:
            run(options(**values))

        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = hints
        return command

    return decorate
