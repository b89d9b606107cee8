"""Where a frame's milliseconds go, on the CPU and on CUDA."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

STAGES = ("preprocess", "encode", "denoise", "fuse", "decode", "postprocess")
"""The stages of a frame, in their order."""


class Stopwatch:
    """Adds up the time spent in each stage of one frame.

    On CUDA an event is recorded wherever a stage begins or ends, which waits for nothing and can be
    captured in a CUDA graph; the times are there when the frame's work has been waited for.

    Parameters
    ----------
    device
        Where the stages run.
    timed
        False records nothing, and all times are 0.
    cuda
        `torch.cuda`, or a test's double.
    """

    def __init__(self, device: torch.device, *, timed: bool = True, cuda: Any = torch.cuda) -> None:
        self._device, self._timed, self._cuda = device, timed, cuda
        self._running: list[str] = []
        self._marks: list[tuple[str, Any]] = []
        """(stage that runs from there on, or empty; event or seconds)"""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge the time inside the `with` to `name`, and not to a stage that surrounds it."""
        self._running.append(name)
        self._mark()
        try:
            yield
        finally:
            self._running.pop()
            self._mark()

    def stage_ms(self) -> dict[str, float]:
        """Return the milliseconds of every stage so far."""
        found = dict.fromkeys(STAGES, 0.0)
        for (name, start), (_, end) in itertools.pairwise(self._marks):
            if name:
                on_gpu = self._device.type == "cuda"
                found[name] += start.elapsed_time(end) if on_gpu else (end - start) * 1e3
        return found

    def _mark(self) -> None:
        if not self._timed:
            return
        now: Any = time.perf_counter()
        if self._device.type == "cuda":
            # External: recorded anew by each replay of a graph that it was captured in.
            now = self._cuda.Event(enable_timing=True, external=True)
            now.record(self._cuda.current_stream(self._device))
        self._marks.append((self._running[-1] if self._running else "", now))
