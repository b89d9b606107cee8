"""In how many bits a network computes: in as few as keep parity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from magicfuse_ros.messages import one_line
from magicfuse_ros.runtime.backends import parity
from magicfuse_ros.runtime.contract import Progress

Made = TypeVar("Made", bound=Callable[..., Any])


class Cast(nn.Module):
    """A network that computes in 16 bits, with inputs and outputs in 32, so that no caller minds.

    Parameters
    ----------
    module
        The network, whose weights are cast in place.
    dtype
        `torch.float16` or `torch.bfloat16`.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module.to(dtype), dtype

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the network returns; inputs that are not floating point stay as they are."""
        result = self.module(
            *(each.to(self.dtype) if each.is_floating_point() else each for each in inputs)
        )
        if isinstance(result, Tensor):
            return result.float()
        return tuple(each.float() for each in result)


def first_faithful(
    name: str,
    versions: Mapping[str, Callable[[], Made]],
    example: parity.Example,
    progress: Progress,
) -> Made:
    """Return the first of a network's versions that can be made and keeps parity.

    Parameters
    ----------
    name
        The part, for what is told to `progress` when a version is passed over.
    versions
        What it computes in, such as `16 bits` → makes it, fewest bits first. The last one is
        returned without a check: there is no other, and what it raises is raised.
    example
        Inputs on the device that the versions run on, and the result to compare with.
    """
    *others, last = versions
    for which, following in zip(others, (*others, last)[1:], strict=True):
        try:
            network = versions[which]()
            with torch.inference_mode():
                parity.check(f"{name} in {which}", network(*example.inputs), example.reference)
        except Exception as error:  # noqa: BLE001 - a compiler may raise anything
            progress(f"{name} computes in {following}: {one_line(error)}")
        else:
            return network
    return versions[last]()
