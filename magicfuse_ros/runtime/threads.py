"""Sets how many threads PyTorch uses, for as long as it matters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def pytorch_threads(count: int) -> Iterator[None]:
    """Let PyTorch use `count` threads inside the `with`, in the calling thread; 0 changes nothing.

    PyTorch keeps this number for each thread that calls it.
    """
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count:
            torch.set_num_threads(before)
