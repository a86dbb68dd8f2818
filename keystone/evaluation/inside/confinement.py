"""How a forked child gives up everything it does not need, before one line of a program runs.

Two ways: `process` makes do with resource limits and, for root, another user. `namespaces`, inside bubblewrap, gives
each program a process space of its own and a new, small, private file system to write to, and drops every capability.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
from typing import Any

if sys.platform == "win32":  # pragma: no cover - mypy needs the guard to know fork
    raise ImportError("the sandboxes need fork and resource limits, which Windows does not have")

NOBODY = 65534
_DEATH_SIGNAL, _DUMPABLE, _SUBREAPER, _NO_NEW_PRIVILEGES, _AMBIENT = 1, 4, 36, 38, 47  # linux/prctl.h
_CLEAR_ALL = 4
_NEW_MOUNTS, _NEW_IPC, _NEW_PROCESSES = 0x20000, 0x08000000, 0x20000000  # linux/sched.h
_NOSUID_NODEV = 2 | 4  # linux/mount.h
_CAPABILITY_VERSION = 0x20080522  # linux/capability.h, version 3: two words of 32 bits each
_FILES = 4096  # inodes of the private file system

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def take_limits(limits: dict[str, Any]) -> None:
    """Resource limits of this process and its children, never above what is allowed already."""
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
    ):
        ceiling = resource.getrlimit(limit)[1]
        soft = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        # One second more before the kill, so that SIGXCPU comes first and tells a time-out from other deaths.
        resource.setrlimit(limit, (soft, soft + 1 if limit == resource.RLIMIT_CPU and soft == value else soft))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit is an OSError, not a death


def keep_only(descriptors: tuple[int, ...]) -> None:
    """Close every file descriptor but the standard three and these."""
    start = 3
    for descriptor in sorted(descriptors):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def become_user(folder: str, user: int) -> None:
    """Own `folder` as `user` and be that user, for good, where that is somebody else."""
    os.chdir(folder)
    if user != os.geteuid():
        os.chown(folder, user, user)
        drop_user()


def drop_user() -> None:
    """Root becomes nobody."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def can_drop_user() -> bool:
    """Whether root can become nobody here, asked in a child; in some user namespaces it cannot."""
    if os.geteuid() != 0:
        return False
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(OSError):
            drop_user()
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def new_process_space() -> None:
    """The next child of this process is the first process of a new process and IPC namespace."""
    _checked("unshare", _NEW_PROCESSES | _NEW_IPC)


def new_files(folder: str, size: int) -> None:
    """Mount an empty file system of `size` bytes over `folder`, seen by this process and its children only."""
    _checked("unshare", _NEW_MOUNTS)
    options = f"size={size},nr_inodes={_FILES},mode=0700".encode()
    _checked("mount", b"tmpfs", folder.encode(), b"tmpfs", _NOSUID_NODEV, options)
    os.chdir(folder)


def drop_capabilities() -> None:
    """No capability is left, and none can come back: bubblewrap has set `no_new_privs` already, and so do we."""
    forbid_new_privileges()
    _checked("prctl", _AMBIENT, _CLEAR_ALL, 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    _checked("capset", header, struct.pack("=6I", *(0,) * 6))


def hide() -> None:
    """Nobody of the same user may trace this process or read its memory."""
    _tried(_DUMPABLE, 0)


def adopt_orphans() -> None:
    """Processes whose parent is gone come to this one, to be killed."""
    _tried(_SUBREAPER, 1)


def forbid_new_privileges() -> None:
    """No setuid file gives anything back."""
    _tried(_NO_NEW_PRIVILEGES, 1)


def die_with_parent() -> None:
    """Call it last: changing the user clears it."""
    _tried(_DEATH_SIGNAL, signal.SIGKILL)


def _tried(option: int, value: int) -> None:
    """A Linux process attribute; other systems go without."""
    if _libc is not None:
        _libc.prctl(option, value, 0, 0, 0)


def _checked(function: str, *arguments: object) -> None:
    if _libc is None:
        raise OSError(f"{function} is a Linux call")
    if getattr(_libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
