"""`tensorrt`: the networks compiled ahead of time by Torch-TensorRT, for CUDA GPUs.

Written from Torch-TensorRT's documentation; docs/gpu.md says what of it has run on a GPU.
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from magicfuse_ros.messages import one_line
from magicfuse_ros.runtime.backends import parity
from magicfuse_ros.runtime.backends.part import Network, Part
from magicfuse_ros.runtime.backends.prepare import Write, part_key, prepare
from magicfuse_ros.runtime.concurrency import StartedNetwork, StreamNetwork
from magicfuse_ros.runtime.contract import Progress

_ENGINE = "engine.ep"
_SETTINGS: dict[str, Any] = {
    "min_block_size": 1,
    # A part that TensorRT cannot take fails the build, and is not left to PyTorch silently.
    "require_full_compilation": True,
    "pass_through_build_failures": True,
    "immutable_weights": True,
    "use_fp32_acc": True,  # of matrix products in 16 bits; those in 32 have it anyway
}


class InHalf(nn.Module):
    """A network that computes in 16 bits: TensorRT takes the precision from the module itself.

    Its inputs and outputs stay in 32 bits, so that callers need not know.

    Parameters
    ----------
    module
        The network, whose weights are cast in place.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.half()

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the network returns; inputs that are not floating point stay as they are."""
        result = self.module(
            *(each.half() if each.is_floating_point() else each for each in inputs)
        )
        if isinstance(result, Tensor):
            return result.float()
        return tuple(each.float() for each in result)


class TensorRtBackend:
    """Compiles each part for the one shape of its inputs.

    Networks compute in 16 bits; one that cannot be built so, or loses parity, computes in 32.

    An engine fits one kind of GPU and one version of TensorRT, so both are in its key. Whenever an
    engine is built or loaded, its result is compared with the module's before it is used.

    Parameters
    ----------
    device
        A CUDA GPU.
    threads
        How many threads PyTorch uses on the CPU to compute the results that engines are compared
        with; 0 leaves that to PyTorch.
    """

    device_type = "cuda"
    memory_format = torch.contiguous_format
    side_by_side = True
    compiles = True

    def __init__(self, device: torch.device, threads: int) -> None:
        import tensorrt
        import torch_tensorrt

        self._versions = {
            "torch_tensorrt": torch_tensorrt.__version__,
            "tensorrt": tensorrt.__version__,
        }
        self.built: list[str] = []
        self.pytorch_threads = threads
        self._device, self._library = device, torch_tensorrt
        self._networks: dict[tuple[str, torch.Size], Network] = {}

    @staticmethod
    def unavailable() -> str:
        """Say that it is not installed."""
        if importlib.util.find_spec("torch_tensorrt") is None:
            return "it is not installed; run: pip install torch-tensorrt"
        return ""

    def compile(self, part: Part, progress: Progress) -> Network:
        """Load the part's engine, or build it, which takes minutes.

        Raises
        ------
        EngineError
            The engine does not give what the module gives.
        """
        about = {**self._versions, **_gpu(self._device), "settings": str(_SETTINGS)}
        key = part_key("tensorrt", part, **about)
        network = prepare(
            part,
            key,
            progress,
            load=self._load,
            build=lambda: self._build(part, progress),
            built=self.built,
        )
        self._networks[part.name, part.inputs[0].shape] = network
        return network

    def share(self, part: Part, progress: Progress) -> StartedNetwork:
        """Run the part's engine on a CUDA stream of its own; raises what `compile` raises."""
        known = self._networks.get((part.name, part.inputs[0].shape))
        return StreamNetwork(known or self.compile(part, progress), self._device)

    def close(self) -> None:
        """Let go of the engines."""
        self._networks.clear()

    def _build(self, part: Part, progress: Progress) -> tuple[Network, Write]:
        try:
            compiled = self._compiled(part, InHalf(copy.deepcopy(part.module)))
            with torch.inference_mode():
                parity.check(f"{part.name} in 16 bits", compiled(*part.inputs), part.reference)
        except Exception as error:  # noqa: BLE001 - TensorRT may raise anything
            progress(f"{part.name} computes in 32 bits: {one_line(error)}")
            compiled = self._compiled(part, copy.deepcopy(part.module))

        def write(folder: Path) -> None:
            self._library.save(compiled, str(folder / _ENGINE), arg_inputs=part.inputs)

        return compiled, write

    def _compiled(self, part: Part, module: nn.Module) -> Network:
        program = export(module.to(self._device), part)
        network: Network = self._library.dynamo.compile(
            program, arg_inputs=part.inputs, **_SETTINGS
        )
        return network

    def _load(self, folder: Path) -> Network:
        network: Network = self._library.load(str(folder / _ENGINE)).module()
        return network


def export(module: nn.Module, part: Part) -> torch.export.ExportedProgram:
    """Export a part's module for the shapes of its inputs; both are on the same device."""
    with torch.no_grad():
        return torch.export.export(module, part.inputs)


def _gpu(device: torch.device) -> dict[str, str]:
    properties = torch.cuda.get_device_properties(device)
    return {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}"}
