"""Where a frame's milliseconds go, on the CPU and on CUDA."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

STAGES = ("preprocess", "encode", "denoise", "fuse", "decode", "postprocess")
"""The stages of a frame, in their order."""


class Stopwatch:
    """Adds up the time spent in each stage of one frame.

    CUDA works asynchronously, so there the end of a stage waits for the device; otherwise all the
    time would be charged to the stage that waits first.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._running: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge the time inside the `with` to `name`, and not to a stage that surrounds it."""
        self._running.append(name)
        start = time.perf_counter()
        try:
            yield
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        finally:
            elapsed = time.perf_counter() - start
            self._running.pop()
            self._seconds[name] += elapsed
            if self._running:
                self._seconds[self._running[-1]] -= elapsed

    def stage_ms(self) -> dict[str, float]:
        """Milliseconds of every stage so far."""
        return {name: seconds * 1e3 for name, seconds in self._seconds.items()}
