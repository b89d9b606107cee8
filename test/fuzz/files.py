"""A folder for files that are gone when the process is, in memory where there is such a place."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")  # Linux's folder in memory


@functools.cache
def folder() -> Path:
    """This process's own folder."""
    made = Path(tempfile.mkdtemp(prefix="fuzz-", dir=MEMORY if MEMORY.is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def written(name: str, content: bytes) -> Path:
    """Write a file into the folder, over what it held before."""
    path = folder() / name
    path.write_bytes(content)
    return path
