"""What a frame frees is kept for the next frame, as the ROS 2 real-time guide advises.

glibc returns freed blocks of 128 KiB and more to the kernel, and a frame has dozens of them: its
latents and pictures. Each comes back page by page, every page zeroed anew: four fifths of the time
that the arithmetic between the networks took.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_BLOCK = 32 << 20
"""Blocks below this many bytes are kept; glibc accepts no more."""
_KEPT = 64 << 20
"""Most that is kept at the end of the heap, in bytes: many frames' worth."""


def keep_freed_memory() -> None:
    """Let the whole process keep what it frees, after giving back what it holds unused by now.

    To be called when what takes much memory once, such as compiling, is done. Without glibc it does
    nothing.
    """
    give_back_freed_memory()
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return
    library.mallopt(_M_MMAP_THRESHOLD, _BLOCK)
    library.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def give_back_freed_memory() -> None:
    """Return to the kernel what the process holds unused by now; without glibc it does nothing.

    To be called when something large was let go of, such as the networks for one input size.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
