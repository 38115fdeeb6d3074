"""The memory that is found by itself: the machine's, and the limits of made-up cgroups."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from atoll.memory import Memory, main_memory

V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")
# Of each folder: the limit, what is used, and what of that is page cache that can be dropped.
Cgroups = dict[str, tuple[str, str, int]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a machine with 1000 bytes, 800 of them free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1000, available=800))
    return tmp_path


def write(root: Path, own: str, mount: str, cgroups: Cgroups, names: tuple[str, str, str] = V2) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own)
    for path, (limit, used, cache) in cgroups.items():
        folder = root / mount / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {cache}\nactive_file 3\n")


@pytest.mark.parametrize(
    ("own", "cgroups", "expected"),
    [
        ("/a/b", {"a/b": ("max", "100", 0), "a": ("max", "200", 0)}, (1000, 800)),
        ("/a/b", {}, (1000, 800)),
        ("/a/b", {"a/b": ("500", "300", 50)}, (500, 250)),
        ("/a/b", {"a/b": ("500", "100", 0), "a": ("400", "350", 20)}, (400, 70)),
        ("/a/b", {"a/b": ("max", "100", 0), "a": ("400", "100", 0), "": ("450", "440", 0)}, (400, 10)),
        ("/a/b", {"a/b": ("900", "10", 0)}, (900, 800)),
        ("/a/b", {"a/c": ("10", "10", 0)}, (1000, 800)),
        ("/", {"": ("500", "300", 0)}, (500, 200)),
        ("/../../a:b", {"": ("500", "300", 0)}, (500, 200)),
        ("/a/b", {"a/b": ("much", "100", 0)}, (1000, 800)),
        ("/a/b", {"a/b": ("500", "some", 0), "a": ("600", "400", 0)}, (500, 200)),
        ("/a/b", {"a/b": ("500", "some", 0)}, (500, 500)),
        ("/a/b", {"a/b": ("500", "700", 50)}, (500, 0)),
        ("/a/b", {"a/b": ("500", "100", 200)}, (500, 500)),
    ],
)
def test_the_lowest_limit_counts(root: Path, own: str, cgroups: Cgroups, expected: tuple[int, int]) -> None:
    write(root, f"0::{own}\n", "sys/fs/cgroup", cgroups)
    assert main_memory(root) == Memory(*expected)


def test_limits_of_the_first_version_of_cgroups_count(root: Path) -> None:
    own = "5:cpu,cpuacct:/x\n4:memory:/a/b\n1:name=systemd:/y\n0::/\n"
    limits: Cgroups = {"a/b": ("500", "300", 50), "a": (str(2**63 - 4096), "300", 0), "x": ("10", "10", 0)}
    write(root, own, "sys/fs/cgroup/memory", limits, V1)
    assert main_memory(root) == Memory(500, 250)


def test_without_cgroups_it_is_the_machine_s(root: Path) -> None:
    assert main_memory(root) == Memory(1000, 800)
