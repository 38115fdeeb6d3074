"""The inside of the sandbox: gives up what the program must not have, then runs it. Started by `sandbox.py` alone.

It imports nothing of Atoll, since its process has no packages.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

_NEW_NAMESPACES = 0x10000000 | 0x40000000 | 0x00020000 | 0x08000000  # user, network, mounts, System V IPC
_MS_REC, _MS_PRIVATE, _MS_NOSUID_NODEV = 0x4000, 1 << 18, 2 | 4
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _ATTR_RDONLY = 442, -100, 0x8000, 1
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_REFUSED = (
    "ctypes.", "socket.", "subprocess.", "os.exec", "os.fork", "os.kill", "os.posix_spawn", "os.spawn", "os.startfile",
    "os.system", "os.unshare", "os.setns", "pty.", "ftplib.", "http.client.", "imaplib.", "nntplib.", "poplib.",
    "smtplib.", "telnetlib.", "urllib.", "signal.pthread_kill", "sys.addaudithook", "sys.remote_exec",
)  # fmt: skip
_REFUSED_MODULES = frozenset(
    ("_ctypes", "ctypes", "_posixsubprocess", "_socket", "multiprocessing", "_multiprocessing")
)
_CHANGES_FILES = frozenset(
    ("os.chflags", "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.removexattr", "os.rename",
     "os.rmdir", "os.setxattr", "os.symlink", "os.truncate", "os.utime", "shutil.rmtree", "shutil.move")
)  # fmt: skip


class Refused(PermissionError):
    """The program tried what the sandbox does not allow."""


def main() -> None:
    """Read the request from standard input, shut the doors, run the program, report on the descriptor in argv."""
    report = int(sys.argv[1])
    request = json.loads(sys.stdin.buffer.read())
    folder = os.path.realpath(request["folder"])
    _limit(request["limits"])
    if sys.platform == "linux":
        _isolate(folder)
    os.chdir(folder)
    say = os.write
    token, program = request["token"].encode(), request["program"]
    sys.argv = [""]
    sys.addaudithook(_guard(folder))
    try:
        exec(compile(program, "<answer>", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        say(report, f"{type(error).__name__}: {error}"[:300].encode("utf-8", "replace"))
        os._exit(1)
    say(report, token)
    os._exit(0)


def _limit(limits: dict[str, Any]) -> None:
    wanted = {
        resource.RLIMIT_CPU: int(limits["cpu_s"]),
        resource.RLIMIT_AS: int(limits["memory_bytes"]),
        resource.RLIMIT_FSIZE: int(limits["file_bytes"]),
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):
            continue  # macOS knows no limit on addresses; the others hold


def _isolate(folder: str) -> None:
    """Leave the network, make every file read-only but those of `folder`, and give up all capabilities.

    Each step is taken as far as the kernel allows; the audit hook stands behind all of them.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_NAMESPACES) == 0:
        with contextlib.suppress(OSError):  # some systems let a process make a namespace and do nothing in it
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{user} {user} 1")
            _write("/proc/self/gid_map", f"{group} {group} 1")
        libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
        read_only = (ctypes.c_uint64 * 4)(_ATTR_RDONLY, 0, 0, 0)
        libc.syscall(
            _SYS_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, ctypes.byref(read_only), ctypes.sizeof(read_only)
        )
        libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(_MS_NOSUID_NODEV), b"size=8m,nr_inodes=256")
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))
    # A module that is imported already would pass the audit hook.
    for name in [name for name in sys.modules if name.split(".")[0] in ("ctypes", "_ctypes")]:
        del sys.modules[name]


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _guard(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """The audit hook: Python calls it before whatever is listed here."""
    inside = folder + os.sep
    realpath, fsdecode = os.path.realpath, os.fsdecode

    def is_inside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # a descriptor, opened under this same hook
        whole = realpath(fsdecode(path))
        return whole == folder or whole.startswith(inside)

    def guard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & _WRITING and path != os.devnull and not is_inside(path):
                raise Refused(f"writing outside of the sandbox: {path}")
        elif event in _CHANGES_FILES:
            if not all(is_inside(part) for part in arguments if isinstance(part, str | bytes)):
                raise Refused(f"{event} outside of the sandbox")
        elif event == "import" and arguments[0] in _REFUSED_MODULES:
            raise Refused(f"import of {arguments[0]}")
        elif event.startswith(_REFUSED):
            raise Refused(event)

    return guard


if __name__ == "__main__":
    main()
