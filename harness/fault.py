"""Where a process was when it died of a segmentation fault, told to another through memory that both map.

Python's own handler prints what it knows of Python only. A handler of Python code cannot be used: the fault may be in a
thread that waits for the one that holds the interpreter. So it is a few machine instructions.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import signal

# siginfo_t.si_addr, the third 8 bytes of what a handler gets as its second argument.
SI_ADDR = 16


class SigAction(ctypes.Structure):
    """``struct sigaction`` of glibc on x86-64."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint64 * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def instructions(word: int, following: int) -> bytes:
    """Store ``si_addr`` at the address ``word``, then go on at the handler ``following``."""
    return (
        bytes([0x48, 0x8B, 0x46, SI_ADDR])  # mov rax, [rsi + 16]
        + b"\x48\xb9" + word.to_bytes(8, "little")  # movabs rcx, word
        + b"\x48\x89\x01"  # mov [rcx], rax
        + b"\x48\xb8" + following.to_bytes(8, "little")  # movabs rax, following
        + b"\xff\xe0"  # jmp rax
    )  # fmt: skip


def tell(word: int) -> bool:
    """Write the address of a segmentation fault to ``word`` before the handler in force runs; False where it cannot.

    Call it after ``faulthandler.enable()``. Only x86-64 is known, and a kernel may forbid to make instructions.
    """
    if platform.machine() != "x86_64" or not hasattr(mmap, "PROT_EXEC"):
        return False
    libc, action = ctypes.CDLL(None, use_errno=True), SigAction()
    if libc.sigaction(signal.SIGSEGV, None, ctypes.byref(action)) != 0 or not action.handler:
        return False
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except PermissionError:
        return False
    code.write(instructions(word, action.handler))
    action.handler = ctypes.addressof(ctypes.c_char.from_buffer(code))
    # The handler that follows looks at the signal's number only.
    action.flags |= SA_SIGINFO
    _kept.append(code)
    return libc.sigaction(signal.SIGSEGV, ctypes.byref(action), None) == 0


SA_SIGINFO = 4
_kept: list[mmap.mmap] = []
