"""Parity: a compiled network has to give what PyTorch gives, or it is not used.

Networks compute in as few bits as keep it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from magicfuse_ros.messages import one_line
from magicfuse_ros.runtime.contract import EngineError, Progress
from magicfuse_ros.runtime.parts import Part

TOLERANCE = 0.03
"""Largest root mean square of the difference that is accepted, as a share of the reference's.

Networks in 32 bits stay below a ten-thousandth; in bfloat16, whose numbers are 0.4 % apart, those
of `tiny` are off by 0.3 to 1.5 %. A network that was compiled wrongly is off by more.
"""

_FILE = "parity.safetensors"

Made = TypeVar("Made", bound=Callable[..., Any])


class Example(NamedTuple):
    """Inputs of a network, and what PyTorch gives for them."""

    inputs: tuple[Tensor, ...]
    reference: tuple[Tensor, ...]

    @classmethod
    def of(cls, part: Part) -> Example:
        """Return the example of a part."""
        return cls(part.inputs, tensors(part.reference))


def write_example(folder: Path, example: Example) -> None:
    """Keep an example with an artifact."""
    named = {
        f"{kind}.{index}": tensor.detach().cpu().contiguous().clone()
        for kind, several in zip(Example._fields, example, strict=True)
        for index, tensor in enumerate(several)
    }
    save_file(named, folder / _FILE)


def read_example(folder: Path) -> Example:
    """Read what `write_example` kept, on the CPU; nothing stays mapped."""
    named = load((folder / _FILE).read_bytes())
    inputs, reference = (
        tuple(named[key] for key in sorted(named, key=_index) if key.startswith(f"{kind}."))
        for kind in Example._fields
    )
    return Example(inputs, reference)


def _index(name: str) -> int:
    return int(name.rpartition(".")[2])


def tensors(result: Any) -> tuple[Tensor, ...]:
    """Return what a network returned, one tensor or several, as a tuple."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def difference(result: Any, reference: Any) -> float:
    """Return the largest relative root mean square difference of the outputs; inf if not finite.

    It compares what a compiled part and its module return for the same inputs.
    """
    worst = 0.0
    for got, wanted in zip(tensors(result), tensors(reference), strict=True):
        if got.shape != wanted.shape or not bool(torch.isfinite(got).all()):
            return float("inf")
        ours, theirs = got.detach().float().cpu(), wanted.detach().float().cpu()
        scale = theirs.square().mean().sqrt().clamp(min=1e-6)
        error = (ours - theirs).square().mean().sqrt() / scale
        worst = max(worst, float(error))
    return worst


def check(name: str, result: Any, reference: Any) -> float:
    """Return the `difference` of a result and its reference.

    Raises
    ------
    EngineError
        It is larger than `TOLERANCE`; the message begins with `name`, the part and backend.
    """
    found = difference(result, reference)
    if not found <= TOLERANCE:
        raise EngineError(
            f"{name} differs from PyTorch by {found:.2g} of its values; accepted: {TOLERANCE}"
        )
    return found


class Cast(nn.Module):
    """A network that computes in 16 bits, with inputs and outputs in 32, so that no caller minds.

    The module's weights are cast in place, to `torch.float16` or `torch.bfloat16`.
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
    example: Example,
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
    for which, following in itertools.pairwise(versions):
        try:
            network = versions[which]()
            with torch.inference_mode():
                check(f"{name} in {which}", network(*example.inputs), example.reference)
        except Exception as error:  # noqa: BLE001 - a compiler may raise anything
            progress(f"{name} computes in {following}: {one_line(error)}")
        else:
            return network
    *_, last = versions.values()
    return last()
