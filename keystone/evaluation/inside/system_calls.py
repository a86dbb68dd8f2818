"""System calls that no exercise needs, refused to programs by the kernel.

Namespaces hide the machine; these calls would still reach across programs or deep into the kernel. Keyrings belong to a
user and not to a process, so a program could leave a note for the next one there. Shared memory segments hold memory
that no address space counts. The rest (tracing, io_uring, bpf and their kin) is where kernels have been broken out of.

The filter is a classic BPF program, see seccomp(2): other architectures are killed, the listed calls fail with EPERM,
all else is allowed. It exists for x86-64 and 64-bit ARM; elsewhere programs go without it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_SET_SECCOMP, _MODE_FILTER = 22, 2  # linux/prctl.h, linux/seccomp.h
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h: ld abs, jeq, jge, ret
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # struct seccomp_data
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE = 0x00050000 | errno.EPERM
_X32 = 0x40000000  # x86-64 numbers its second ABI from here

_REFUSED = {
    # add_key, request_key, keyctl, shmget, shmat, semget, msgget, mq_open, ptrace, process_vm_readv, process_vm_writev,
    # kcmp, bpf, perf_event_open, userfaultfd, io_uring_setup, io_uring_enter, io_uring_register, open_by_handle_at
    "x86_64": (
        0xC000003E,
        (248, 249, 250, 29, 30, 64, 68, 240, 101, 310, 311, 312, 321, 298, 323, 425, 426, 427, 304),
    ),
    "aarch64": (
        0xC00000B7,
        (217, 218, 219, 194, 196, 190, 186, 180, 117, 270, 271, 272, 280, 241, 282, 425, 426, 427, 265),
    ),
}


def refuse_needless_calls() -> None:
    """From now on, for this process and its children, for good. `no_new_privs` must be set.

    Raises:
        OSError: the kernel does not take the filter.
    """
    known = _REFUSED.get(os.uname().machine)
    if known is None:
        return
    code = filter_program(*known)
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the number of instructions, padding, a pointer to them
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.c_char_p(program), 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def filter_program(architecture: int, refused: tuple[int, ...]) -> bytes:
    """The instructions: 16 bits of operation, 8 of jump if true, 8 of jump if false, 32 of operand."""
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, len(refused) + 1, 0, _X32),
    ]
    steps += [(_EQUAL, len(refused) - place, 0, number) for place, number in enumerate(refused)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
