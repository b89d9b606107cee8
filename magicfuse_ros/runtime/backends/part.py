"""What a backend compiles: one network of a model, with an example of its inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

Network = Callable[..., Any]
"""A compiled part: called with tensors shaped as `Part.inputs`, returns what the module returns."""


@dataclass(frozen=True)
class Part:
    """One network to compile for one shape of inputs.

    Attributes
    ----------
    name
        Unique among a model's parts.
    module
        The network in evaluation mode, on the CPU.
    inputs
        The network's inputs for a picture, so that parity means something, on the device that the
        network is to run on.
    config
        The settings that the module was made from, as text. They hold what its weights and layers
        do not show, such as the number of attention heads.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    config: str = ""

    @cached_property
    def weights(self) -> str:
        """A hash of the network's weights and layers, which names what is compiled from them."""
        digest = hashlib.sha256(repr(self.module).encode())
        for name, tensor in self.module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @cached_property
    def reference(self) -> Any:
        """What the module gives for the inputs, on the CPU: parity is measured against this."""
        with torch.inference_mode():
            return self.module(*(each.cpu() for each in self.inputs))
