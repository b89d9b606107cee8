"""Ψ and Φ side by side: both are started when their inputs are ready, and then both are awaited.

On a CPU the backend's own threads run them. On a GPU each network has its own CUDA stream, and
events keep the order: the encoder, then both, then F.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Inputs = tuple[Tensor, ...]


class StartedNetwork(Protocol):
    """A compiled part that can compute while its caller does something else."""

    def start(self, *inputs: Tensor) -> None:
        """Begin to compute; the next call has to be `finish`."""
        ...

    def finish(self) -> Any:
        """Wait for what `start` began, and return what the module returns."""
        ...


def run_both(
    pair: tuple[StartedNetwork, StartedNetwork], first: Inputs, second: Inputs
) -> tuple[Any, Any]:
    """Run two networks side by side and return the results of both.

    When one fails, the other is still awaited, because it reads its inputs until it has finished.
    """
    pair[0].start(*first)
    try:
        pair[1].start(*second)
    except BaseException:
        pair[0].finish()
        raise
    try:
        one = pair[0].finish()
    except BaseException:
        pair[1].finish()
        raise
    return one, pair[1].finish()


class StreamNetwork:
    """A network on a CUDA stream of its own. One thread uses it.

    The CPU waits for nothing. This stream first waits for the work that the caller's stream was
    given before `start`, and after `finish` the caller's stream waits for this one. The network
    runs on the stream that is current when it is called; `cuda` is for a test's double of
    `torch.cuda`.
    """

    def __init__(
        self, network: Callable[..., Any], device: torch.device, cuda: Any = torch.cuda
    ) -> None:
        self._network, self._device, self._cuda = network, device, cuda
        self._stream = cuda.Stream(device)
        self._ready, self._done = cuda.Event(), cuda.Event()
        self._inputs: Inputs = ()
        self._result: Any = None

    def start(self, *inputs: Tensor) -> None:
        """Begin; see `StartedNetwork`."""
        self._ready.record(self._cuda.current_stream(self._device))
        self._stream.wait_event(self._ready)
        # Kept until `finish`: if they were freed earlier, the caller's stream could overwrite them.
        self._inputs = inputs
        with self._cuda.stream(self._stream):
            self._result = self._network(*inputs)
        self._done.record(self._stream)

    def finish(self) -> Any:
        """Let the caller's stream wait; see `StartedNetwork`."""
        caller = self._cuda.current_stream(self._device)
        caller.wait_event(self._done)
        result, self._result, self._inputs = self._result, None, ()
        for each in (result,) if isinstance(result, Tensor) else result:
            each.record_stream(caller)
        return result
