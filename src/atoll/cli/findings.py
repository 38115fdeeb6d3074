"""What `atoll doctor` looks at; each finding says how it is and, where something is wrong, how to mend it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

State = Literal["ok", "warn", "fail"]

GIB = 2**30
MIN_PYTHON, END_PYTHON = (3, 11), (3, 14)
_WANTED_MEMORY = 4 * GIB
_WANTED_DISK = 3 * GIB
_SHOWN_VERSIONS = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numba", "numpy", "fastapi")
_CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")
_HUB_SETTINGS = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN")
_SECRETS = ("HF_TOKEN",)
_ON = ("1", "true", "yes", "on")


class Finding(NamedTuple):
    """One thing that was looked at. text: what was found; mend: what the user can do about it."""

    name: str
    state: State
    text: str
    mend: str | None = None


def examine(*, port: int, store: Path) -> Iterator[Finding]:
    """Everything, the quick things first; the last measures the processor for about a second."""
    from atoll.cli.findings_compute import expectation, gpu, numbers
    from atoll.model.cache import cache_root

    yield python()
    yield versions()
    yield processor()
    yield memory()
    yield disk("cache", cache_root(), "ATOLL_CACHE")
    yield disk("store", store, "ATOLL_STORE")
    yield adapters(store)
    yield base_model()
    yield kernels()
    yield hub_settings()
    yield listening(port)
    yield clock()
    yield gpu()
    yield numbers()
    yield expectation()


def python() -> Finding:
    """The interpreter."""
    text = f"{sys.version.split()[0]} at {sys.executable}"
    if MIN_PYTHON <= sys.version_info[:2] < END_PYTHON:
        return Finding("python", "ok", text)
    return Finding("python", "fail", text, "use Python 3.11, 3.12 or 3.13")


def versions() -> Finding:
    """Whether all that Atoll needs is installed, and the versions that matter."""
    try:
        requirements = importlib.metadata.requires("atoll") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding("versions", "warn", "atoll itself is not installed", "install it: make setup")
    needed = [re.split(r"[^\w.-]", line)[0] for line in requirements if ";" not in line]
    missing = [name for name in needed if _version(name) is None]
    shown = f"atoll {_version('atoll')}, " + ", ".join(f"{name} {_version(name)}" for name in _SHOWN_VERSIONS)
    if missing:
        return Finding("versions", "fail", f"not installed: {', '.join(missing)}; {shown}", "install it: make setup")
    return Finding("versions", "ok", shown)


def processor() -> Finding:
    """Cores that this process may use, and what they can do."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    info = ""
    with suppress(OSError):
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = set((re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE) or [""])[0].split())
    features = [name for name in _CPU_FEATURES if name in flags]
    text = (
        f"{model[1] if model else 'a processor without a name'}, {cores} cores: {', '.join(features) or 'no features'}"
    )
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) < cores:
        return Finding("processor", "warn", text, f"OMP_NUM_THREADS={threads} leaves cores idle: unset it")
    if "flags" in info and "avx2" not in flags:
        return Finding("processor", "warn", text, "without AVX2 the kernels are slow: use another machine")
    return Finding("processor", "ok", text)


def memory() -> Finding:
    """Main memory, as this process may use it."""
    from atoll.memory import main_memory

    total, available = main_memory()
    text = f"{available / GIB:.1f} of {total / GIB:.1f} GiB free"
    if available < _WANTED_MEMORY // 4:
        return Finding("memory", "fail", text, "free some: the smallest base takes 1 GiB to serve, 3 to 5 to tune")
    if available < _WANTED_MEMORY:
        return Finding("memory", "warn", text, "serving the smallest base works; tuning wants 3 to 5 GiB")
    return Finding("memory", "ok", text)


def disk(name: str, folder: Path, variable: str) -> Finding:
    """Room and rights for a folder that need not be there yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{folder}, {free / GIB:.1f} GiB free"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding(name, "fail", f"{text}; {there} cannot be written", f"name another folder: {variable}")
    if free < _WANTED_DISK:
        state: State = "fail" if free < _WANTED_DISK // 30 else "warn"
        return Finding(name, state, text, f"free the disk, or name another folder: {variable}")
    return Finding(name, "ok", text)


def adapters(store: Path) -> Finding:
    """Whether each adapter in the store can be found."""
    from atoll.adapters.store import AdapterStore
    from atoll.errors import AtollError

    opened = AdapterStore(store)
    names = opened.names()
    broken = []
    for name in names:
        try:
            opened.resolve(name)
        except (AtollError, OSError):
            broken.append(name)
    if broken:
        mend = f"restore them from a backup, or take them out: atoll rm {broken[0]}"
        return Finding("adapters", "fail", f"{len(broken)} of {len(names)} cannot be read: {', '.join(broken)}", mend)
    return Finding("adapters", "ok", f"{len(names)} in the store" if names else "none yet; `atoll tune` makes some")


def base_model() -> Finding:
    """Whether the default base is on this machine already."""
    from atoll.model.cache import cache_root
    from atoll.model.source import DEFAULT_BASE

    kept = sorted((cache_root() / "models").glob(f"{DEFAULT_BASE}-*"))
    num_others = sum(not path.name.startswith((DEFAULT_BASE, ".")) for path in (cache_root() / "models").glob("*"))
    others = f"; {num_others} converted GGUF" if num_others else ""
    if kept:
        return Finding("base model", "ok", f"{DEFAULT_BASE} is in the cache{others}")
    text = f"{DEFAULT_BASE} is not in the cache{others}"
    return Finding("base model", "ok", f"{text}: the first use fetches it from the hub or PyPI (0.1 to 0.3 GB)")


def kernels() -> Finding:
    """Whether the CPU kernels are compiled, and whether that can be kept."""
    import atoll.kernels.cpu as package

    folder, kept = Path(next(iter(package.__path__))), package.CACHE_FOLDER
    num_kept = len(list(kept.rglob("*.nbc")))
    if num_kept:
        return Finding("kernels", "ok", f"compiled for {num_kept} cases")
    if kept.is_relative_to(folder) and not os.access(folder, os.W_OK):
        text = f"{folder} cannot be written: each user, or each start, compiles anew (about half a minute)"
        return Finding("kernels", "warn", text, "name a folder that lasts: NUMBA_CACHE_DIR")
    return Finding(
        "kernels", "ok", "not compiled yet: the first engine does it (about half a minute), later ones read them"
    )


def hub_settings() -> Finding:
    """What the environment says to huggingface_hub; tokens are not shown."""
    values = {name: os.environ[name] for name in _HUB_SETTINGS if os.environ.get(name)}
    shown = ", ".join(f"{name}={'(set)' if name in _SECRETS else _shown(value)}" for name, value in values.items())
    if values.get("HF_HUB_OFFLINE", "").lower() in _ON:
        mend = "unset HF_HUB_OFFLINE to fetch bases and to push"
        return Finding("hub", "warn", f"{shown}: only what is in the cache can be used", mend)
    return Finding("hub", "ok", shown or "no HF_* settings: huggingface.co, without a token")


def listening(port: int) -> Finding:
    """Whether a server could have the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            return Finding("port", "warn", f"{port} may not be used by this user", "choose one above 1023: --port")
        except OSError:
            mend = "see what runs: atoll ps; or serve at another one: atoll serve --port"
            return Finding("port", "warn", f"{port} is taken", mend)
    return Finding("port", "ok", f"{port} is free")


def clock() -> Finding:
    """A clock that is behind breaks TLS, keys that expire, and the dates in contracts."""
    newest_s = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if time.time() < newest_s - 60:
        return Finding("clock", "fail", f"{now}, which is before Atoll was installed", "set the clock")
    return Finding("clock", "ok", now)


def _shown(value: str) -> str:
    """Without the password that an address may hold."""
    return re.sub(r"//[^/@]*@", "//(set)@", value)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
