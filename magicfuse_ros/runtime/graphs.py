"""The sampler's whole loop as one CUDA graph: the GPU is given one task instead of hundreds.

Written from PyTorch's documentation; docs/gpu.md says what of it has run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from magicfuse_ros.messages import one_line
from magicfuse_ros.model.sampler import SamplerSettings, Step
from magicfuse_ros.runtime.backends import parity
from magicfuse_ros.runtime.contract import Progress

Loop = Callable[[Tensor], Step]
"""Maps the condition latent to the last step; nothing else may differ between frames."""

Replay = Callable[[], None]

Capture = Callable[[Callable[[], Step], torch.device], tuple[Step, Replay]]
"""Captures a function; returns the tensors that each replay overwrites, and what replays it."""

_WARM_UPS = 3
"""Runs before a capture, as PyTorch advises: libraries allocate and choose algorithms in them."""


def capture_on_cuda(run: Callable[[], Step], device: torch.device) -> tuple[Step, Replay]:
    """Capture a function on a GPU, with the streams that it forks and joins; see `Capture`."""
    with torch.cuda.device(device):
        caller, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(caller)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                run()
        caller.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may make networks for other sizes during the capture.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outcome = run()
    return outcome, graph.replay


class LoopGraph:
    """Runs a loop as a graph, captured at its first frame and whenever the settings change.

    If the loop cannot be captured, or the graph gives another result than the loop, the loop runs
    without a graph until the settings change again, and `progress` is told.

    Parameters
    ----------
    device
        A CUDA GPU.
    progress
        Called with a line of text when a capture fails.
    capture
        Does the capture; tests replace it.
    """

    def __init__(
        self, device: torch.device, progress: Progress, capture: Capture = capture_on_cuda
    ) -> None:
        self._device, self._progress, self._capture = device, progress, capture
        self._settings: SamplerSettings | None = None
        self._captured: tuple[Tensor, Step, Replay] | None = None

    def run(self, loop: Loop, condition: Tensor, settings: SamplerSettings) -> Step:
        """Return what the loop gives for a condition latent.

        Parameters
        ----------
        loop
            With the same `settings` it has to be the same, except for the values of its tensors.
        condition
            (1, 8, h, w), of one shape.
        """
        if settings != self._settings:
            self._settings = settings
            try:
                self._captured = self._make(loop, condition)
            except Exception as error:  # noqa: BLE001 - CUDA and its libraries may raise anything
                self._captured = None
                reason = one_line(error)
                self._progress(f"the sampling loop runs without a CUDA graph: {reason}")
        if self._captured is None:
            return loop(condition)
        kept, outcome, replay = self._captured
        kept.copy_(condition)
        replay()
        # Cloned: the next replay overwrites them, and the caller may keep them for longer.
        return replace(outcome, **{name: each.clone() for name, each in _tensors(outcome).items()})

    def _make(self, loop: Loop, condition: Tensor) -> tuple[Tensor, Step, Replay]:
        kept = condition.clone()
        outcome, replay = self._capture(lambda: loop(kept), self._device)
        replay()
        parity.check(
            "the CUDA graph of the sampling loop",
            tuple(_tensors(outcome).values()),
            tuple(_tensors(loop(condition)).values()),
        )
        return kept, outcome, replay


def _tensors(step: Step) -> dict[str, Any]:
    return {name: value for name, value in vars(step).items() if isinstance(value, Tensor)}
