"""`eager`: the networks as plain PyTorch, on the CPU or on CUDA. It works wherever PyTorch does."""

from __future__ import annotations

import copy

import torch
from torch import nn

from magicfuse_ros.runtime.backends import parity
from magicfuse_ros.runtime.concurrency import StartedNetwork, StreamNetwork
from magicfuse_ros.runtime.contract import Progress
from magicfuse_ros.runtime.parts import Network, Part


class EagerBackend:
    """Runs each module as it is; nothing is compiled.

    On CUDA a network computes in half precision; one that loses parity so computes in bfloat16,
    which has the range of 32 bits, and if that is not enough, in 32 bits.

    Parameters
    ----------
    device
        Where the modules run. For a GPU they are copied: the model keeps its weights on the CPU,
        where a backend to fall back to finds them even when the GPU is lost.
    threads
        How many threads PyTorch uses; 0 leaves that to PyTorch.
    """

    device_type = ""
    memory_format = torch.channels_last  # oneDNN and cuDNN convolve fastest in it

    compiles = False

    def __init__(self, device: torch.device, threads: int) -> None:
        self.pytorch_threads = threads
        self.side_by_side = device.type == "cuda"  # a CPU's threads serve one network at a time
        self.built: list[str] = []
        self.in_pytorch: dict[str, str] = {}
        self._device = device
        self._modules: dict[str, nn.Module] = {}

    @staticmethod
    def unavailable() -> str:
        """Return nothing: PyTorch runs on every device that `candidates` accepts."""
        return ""

    def compile(self, part: Part, progress: Progress) -> Network:
        """Put the part on the device, in the backend's memory format."""
        if part.name not in self._modules:
            module = part.module if self._device.type == "cpu" else copy.deepcopy(part.module)
            module = module.to(memory_format=self.memory_format)  # type: ignore[call-overload]
            module = module.to(self._device)
            if self._device.type == "cuda":
                module = in_fewest_bits(module, part, progress)
            self._modules[part.name] = module
        return self._modules[part.name]

    def share(self, part: Part, progress: Progress) -> StartedNetwork:
        """Put a part on a CUDA stream of its own."""
        return StreamNetwork(self.compile(part, progress), self._device)

    def close(self) -> None:
        """Let go of the modules."""
        self._modules.clear()


def in_fewest_bits(module: nn.Module, part: Part, progress: Progress) -> nn.Module:
    """Return a module in the fewest bits that keep its parity; it is on the device of the inputs.

    It is compared with itself in 32 bits on its own device: a GPU finds that in no time.
    """
    with torch.inference_mode():
        exact = parity.Example(part.inputs, parity.tensors(module(*part.inputs)))
    versions = {
        "float16": lambda: parity.Cast(copy.deepcopy(module), torch.float16),
        "bfloat16": lambda: parity.Cast(copy.deepcopy(module), torch.bfloat16),
        "float32": lambda: module,
    }
    return parity.first_faithful(part.name, versions, exact, progress)
