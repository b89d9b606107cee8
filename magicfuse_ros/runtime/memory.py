"""Keeps the memory that a frame frees for the next frame, as the ROS 2 real-time guide advises.

glibc returns freed blocks of 128 KiB and more to the kernel, and a frame has dozens of them: its
latents and pictures. The kernel then hands them out again page by page and zeroes each page, which
took four fifths of the time of the arithmetic between the networks.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_BLOCK = 32 << 20
"""Blocks below this many bytes are kept; glibc accepts no more."""
_KEPT = 64 << 20
"""Most that is kept at the end of the heap, in bytes: many frames' worth."""


def keep_freed_memory() -> None:
    """Give back the process's unused memory, and keep what it frees from now on.

    Call it after work that needs much memory once, such as compiling. Without glibc it does
    nothing.
    """
    give_back_freed_memory()
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return
    library.mallopt(_M_MMAP_THRESHOLD, _BLOCK)
    library.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def give_back_freed_memory() -> None:
    """Return the process's unused memory to the kernel; without glibc it does nothing.

    Call it after releasing something large, such as the networks for one input size.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
