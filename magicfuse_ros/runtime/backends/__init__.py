"""Backends execute the networks: one file for each backend, and one contract for all.

A backend gets the parts of a model (`model.checkpoint.PARTS`) one at a time, each with inputs of
the one shape it will ever see (batch 1), and returns callables that take and return tensors on its
device. The sampler is composed over those callables, so it is the same code on every backend.

To add one: write `backends/<name>.py` with a class that fulfils `Backend`; list it in `BACKENDS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from magicfuse_ros.runtime.backends.eager import EagerBackend
from magicfuse_ros.runtime.backends.openvino import OpenVinoBackend
from magicfuse_ros.runtime.backends.tensorrt import TensorRtBackend
from magicfuse_ros.runtime.concurrency import StartedNetwork
from magicfuse_ros.runtime.contract import EngineError, Progress
from magicfuse_ros.runtime.parts import Network, Part

__all__ = ["BACKENDS", "Backend", "Candidate", "Network", "Part", "candidates", "missing"]


class Backend(Protocol):
    """What every backend offers.

    It is made with the device it is to run on, and the number of cores for its networks (0: all).
    """

    # The only kind of device it runs on, `cpu` or `cuda`; empty where it runs on any.
    device_type: str
    # Memory layout for tensors that are kept from frame to frame, so that none has to be copied.
    memory_format: torch.memory_format
    side_by_side: bool  # whether two networks can run at the same time: those that `share` compiles
    # Whether a part takes seconds or minutes to be made ready; False where it is ready at once.
    compiles: bool
    # How many threads PyTorch may use while parts are made and run; 0 leaves that to PyTorch.
    pytorch_threads: int
    # Names of the parts that were compiled from scratch, and not found in the artifact cache.
    built: list[str]
    # Names of the parts that PyTorch runs although they should be compiled, with the reason.
    in_pytorch: dict[str, str]

    def __init__(self, device: torch.device, threads: int) -> None: ...

    @staticmethod
    def unavailable() -> str:
        """Say what it lacks on this machine; empty when it can run."""
        ...

    def compile(self, part: Part, progress: Progress) -> Network:
        """Compile a part for its one shape; it may take minutes, and reports to `progress`."""
        ...

    def share(self, part: Part, progress: Progress) -> StartedNetwork:
        """Compile a part to run beside another; on a CPU it gets half of the cores."""
        ...

    def close(self) -> None:
        """Release what the compiled parts hold; they may not be called afterwards."""
        ...


BACKENDS: dict[str, type[Backend]] = {
    "tensorrt": TensorRtBackend,
    "openvino": OpenVinoBackend,
    "eager": EagerBackend,
}
"""Name → backend, in the order in which `auto` tries them: the fastest first, `eager` last."""


@dataclass(frozen=True)
class Candidate:
    """A backend on a device; `str()` gives what reports call it, such as `eager on cpu`."""

    name: str
    device: torch.device

    def __str__(self) -> str:
        return f"{self.name} on {self.device}"

    def make(self, threads: int) -> Backend:
        """Make the backend, for networks on this many cores (0: all)."""
        return BACKENDS[self.name](self.device, threads)


def candidates(backend: str, device: str) -> list[Candidate]:
    """List the backends that may run a model: the one to use, then those to fall back to.

    A backend that is asked for by name is followed by those after it in `BACKENDS`, so the last
    resort is always `eager`. With device `auto`, the CPU comes after CUDA.

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
        reasons = [_unavailable(backend, device) for device in devices]
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
        if not _unavailable(name, device)
    ]


def missing(backend: str, device: str) -> list[str]:
    """List the backends that `auto` would prefer here, each as a line that says what it lacks."""
    first = candidates(backend, device)[0]
    if backend != "auto":
        return []
    names = list(BACKENDS)
    return [
        f"{name} is faster than {first} and is left out: {BACKENDS[name].unavailable()}"
        for name in names[: names.index(first.name)]
        if BACKENDS[name].device_type in ("", first.device.type)
    ]


def _unavailable(name: str, device: torch.device) -> str:
    """Say why a backend cannot run on a device; empty when it can."""
    kind = BACKENDS[name].device_type
    if kind not in ("", device.type):
        return f"it is for {kind} only"
    return BACKENDS[name].unavailable()


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
