"""`atoll export`: an adapter as a folder for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from atoll.cli.options import AdapterId, AsJson, Base, Numbers, Store
from atoll.cli.output import print_json, size_text

if TYPE_CHECKING:
    from atoll.adapters.store import StoredAdapter
    from atoll.cli.loading import DType


def export(
    adapter: AdapterId,
    to: Annotated[Path, typer.Option("--to", help="The folder to make.", show_default=False)],
    kind: Annotated[
        Literal["peft", "merged"],
        typer.Option("--format", help="peft: the adapter's own files; merged: a whole model with the adapter in it."),
    ] = "peft",
    base_model: Base = None,
    dtype: Numbers = "auto",
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Write an adapter to a folder: as PEFT's files, byte for byte, or merged into its base as a model of its own.

    A merged model is what transformers loads without PEFT or Atoll; --dtype auto keeps the numbers that the base is
    stored in.

    Example: atoll export sentiment --to ./sentiment-model --format merged
    """
    from atoll.adapters.export import copy_files, new_folder
    from atoll.cli.loading import open_store
    from atoll.errors import UsageError

    if kind == "peft" and (base_model is not None or dtype != "auto"):
        raise UsageError("--base-model and --dtype are for --format merged", mend="leave them out")
    stored = open_store(store).resolve(adapter)
    target = to.absolute()
    with new_folder(target) as folder:
        if kind == "peft":
            copy_files(stored, folder)
        else:
            _merge(stored, folder, base_model, dtype)
    sizes = {path.name: path.stat().st_size for path in sorted(target.iterdir()) if path.is_file()}
    if as_json:
        print_json({"adapter": stored.id, "digest": stored.digest, "folder": str(target), "files": sizes})
    else:
        print(f"{stored.id} is in {target}: {len(sizes)} files, {size_text(sum(sizes.values()))}")


def _merge(stored: StoredAdapter, folder: Path, base_model: str | None, dtype: DType) -> None:
    from atoll.adapters.export import merge_into
    from atoll.adapters.peft_io import read_adapter
    from atoll.cli.loading import Progress
    from atoll.errors import UsageError
    from atoll.model.load import load_base, load_config
    from atoll.model.quiet import quiet
    from atoll.model.source import resolve_base

    base_name = base_model or (stored.contract.base.name if stored.contract else None)
    if base_name is None:
        raise UsageError(f"{stored.id} has no contract that names its base model", mend="name it: --base-model")
    weights = read_adapter(stored.folder, verify=stored.verify)
    progress = Progress()
    resolved = resolve_base(base_name, progress)
    if dtype == "auto":
        dtype = "bfloat16" if str(load_config(resolved.folder).dtype) == "torch.bfloat16" else "float32"
    base = load_base(base_name, dtype=dtype, device="cpu", on_progress=progress)
    stored.check_base(base.digest)
    merge_into(base.model, weights)
    progress("writing the model", None)
    with quiet():
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
