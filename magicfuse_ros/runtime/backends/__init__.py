"""Backends: what executes the networks. One file a backend, one contract.

A backend gets the parts of a model (`model.magicfuse.PARTS`) one at a time, each with inputs of the
one shape it will ever see (batch 1), and returns callables that take and return tensors on its
device. The sampler is composed over those callables, so it is the same code on every backend.

To add one: write `backends/<name>.py` with a class that fulfils `Backend`; list it in `BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from magicfuse_ros.runtime.backends.eager import EagerBackend
from magicfuse_ros.runtime.contract import EngineError, Progress

Network = Callable[..., Any]
"""A compiled part: called with tensors shaped as `Part.inputs`, returns what the module returns."""


@dataclass(frozen=True)
class Part:
    """One network to compile: its name, the module in evaluation mode, and example inputs."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]


class Backend(Protocol):
    """What every backend offers. It is made with the device it is to run on."""

    def __init__(self, device: torch.device) -> None: ...

    @staticmethod
    def unavailable(device: torch.device) -> str:
        """Say why this backend cannot run on `device` (a library is missing …); empty if it can."""
        ...

    def compile(self, part: Part, progress: Progress) -> Network:
        """Make one part fast for one shape; may take minutes, and then says how it goes."""
        ...

    def close(self) -> None:
        """Give back what the compiled parts hold; they are not called any more."""
        ...


BACKENDS: dict[str, type[Backend]] = {"eager": EagerBackend}
"""Name → backend, in the order in which `auto` tries them: the fastest first, `eager` last."""


@dataclass(frozen=True)
class Candidate:
    """A backend on a device; `str()` gives what reports call it, such as `eager on cpu`."""

    name: str
    device: torch.device

    def __str__(self) -> str:
        return f"{self.name} on {self.device}"

    def make(self) -> Backend:
        """Make the backend."""
        return BACKENDS[self.name](self.device)


def candidates(backend: str, device: str) -> list[Candidate]:
    """List what may run a model: the one to use, then those to fall back to.

    A backend asked for by name is followed by the others only behind it in `BACKENDS`, so the last
    resort is always `eager`. With device `auto`, the CPU stands behind CUDA.

    Raises
    ------
    EngineError
        The backend or the device is unknown or cannot be had on this machine.
    """
    devices = _devices(device)
    names = list(BACKENDS)
    if backend != "auto":
        if backend not in BACKENDS:
            raise EngineError(f"backend is {backend!r}; accepted: auto, {', '.join(names)}")
        reasons = [BACKENDS[backend].unavailable(device) for device in devices]
        if all(reasons):
            raise EngineError(
                f"backend {backend!r} cannot run on {devices[0]}: {reasons[0]}; "
                "set backend to auto, or another device"
            )
        names = names[names.index(backend) :]
    return [
        Candidate(name, device)
        for device in devices
        for name in names
        if not BACKENDS[name].unavailable(device)
    ]


def _devices(device: str) -> list[torch.device]:
    cpu = torch.device("cpu")
    if device == "auto":
        return [torch.device("cuda", 0), cpu] if torch.cuda.is_available() else [cpu]
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()) or device.endswith(":"):
        raise EngineError(f"device is {device!r}; accepted: auto, cpu, cuda, cuda:N")
    if kind == "cpu":
        return [cpu]
    if not torch.cuda.is_available():
        raise EngineError(
            f"device is {device!r}, but PyTorch sees no CUDA GPU here; set device to auto or cpu, "
            "or install a CUDA build of PyTorch and the GPU's driver"
        )
    if int(index or 0) >= torch.cuda.device_count():
        raise EngineError(
            f"device is {device!r}, but this machine has {torch.cuda.device_count()} CUDA GPUs, "
            "counted from cuda:0"
        )
    return [torch.device("cuda", int(index or 0))]
