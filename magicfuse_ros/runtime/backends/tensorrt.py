"""`tensorrt`: the networks compiled ahead of time by Torch-TensorRT, for CUDA GPUs.

There are three TensorRTs: TensorRT 11, which `torch-tensorrt` brings for data-centre GPUs; TensorRT
for RTX, which `torch-tensorrt-rtx` brings; and TensorRT 10, which a Jetson's JetPack has and for
which torch-tensorrt is built from its source. docs/gpu.md says what of it has run on a GPU.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import importlib.util
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from magicfuse_ros.messages import one_line
from magicfuse_ros.runtime.artifacts import ArtifactCache
from magicfuse_ros.runtime.backends import parity
from magicfuse_ros.runtime.backends.eager import EagerBackend
from magicfuse_ros.runtime.backends.prepare import Write, part_key, prepare
from magicfuse_ros.runtime.concurrency import StartedNetwork, StreamNetwork
from magicfuse_ros.runtime.contract import EngineError, Progress
from magicfuse_ros.runtime.parts import Network, Part

_LEAST = (2, 10)
"""Before this version torch-tensorrt chose the precision itself, and not the module."""

_DISTRIBUTIONS = ("torch-tensorrt", "torch-tensorrt-rtx")
_ENGINE, _REASON = "engine.pt2", "reason"
_SETTINGS: dict[str, Any] = {
    "min_block_size": 1,
    # A part that TensorRT cannot take fails the build, and is not left to PyTorch silently.
    "require_full_compilation": True,
    "pass_through_build_failures": True,
    "immutable_weights": True,
    "use_fp32_acc": True,  # of matrix products in 16 bits; those in 32 have it anyway
}


class TensorRtBackend:
    """Compiles each part for the one shape of its inputs.

    Networks compute in 16 bits; one that cannot be built so, or loses parity, computes in 32, and
    if that fails too, it alone runs in PyTorch, as `eager` runs it.

    An engine fits one kind of GPU, one place among them and one version of TensorRT, so all are in
    its key. Whenever an engine is built or loaded, its result is compared with the module's before
    it is used.

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
        self._library, self._versions = _libraries()
        self.built: list[str] = []
        self.in_pytorch: dict[str, str] = {}
        self.pytorch_threads = threads
        self._device, self._eager = device, EagerBackend(device, threads)

    @staticmethod
    def unavailable() -> str:
        """Say that it is not installed, or too old."""
        if importlib.util.find_spec("torch_tensorrt") is None:
            return (
                "it is not installed; run: pip install torch-tensorrt, or torch-tensorrt-rtx for a "
                "GeForce or RTX GPU; for a Jetson it is built from its source, see docs/gpu.md"
            )
        for name in _DISTRIBUTIONS:
            with suppress(importlib.metadata.PackageNotFoundError):
                version = importlib.metadata.version(name)
                if tuple(map(int, re.findall(r"\d+", version)[:2])) < _LEAST:
                    return (
                        f"{name} is {version}; accepted: {'.'.join(map(str, _LEAST))} or newer; "
                        f"run: pip install --upgrade {name}"
                    )
        return ""

    def compile(self, part: Part, progress: Progress) -> Network:
        """Load the part's engine, or build it, which takes minutes; see `in_pytorch`."""
        about = {**self._versions, **_gpu(self._device), "settings": str(_SETTINGS)}
        key = part_key("tensorrt", part, **about)
        refused = {**key, "kept": "why not"}
        cache = ArtifactCache.of_user(progress)
        folder = cache.load(refused)
        if folder is not None:
            return self._instead(part, (folder / _REASON).read_text(encoding="utf-8"), progress)
        try:
            return prepare(
                part,
                key,
                progress,
                load=self._load,
                build=lambda: self._build(part, progress),
                built=self.built,
            )
        except Exception as error:  # noqa: BLE001 - TensorRT may raise anything
            why = one_line(error)
            network = self._instead(part, why, progress)
            if isinstance(error, EngineError):  # lost parity: it would do so again
                cache.store(refused, lambda new: _write(new / _REASON, why))
            return network

    def share(self, part: Part, progress: Progress) -> StartedNetwork:
        """Run the part's engine on a CUDA stream of its own."""
        return StreamNetwork(self.compile(part, progress), self._device)

    def close(self) -> None:
        """Let go of what PyTorch runs; engines live as long as those who call them."""
        self._eager.close()

    def _instead(self, part: Part, why: str, progress: Progress) -> Network:
        self.in_pytorch[part.name] = why
        progress(f"{part.name} runs in PyTorch and not in {self._versions['kind']}: {why}")
        return self._eager.compile(part, progress)

    def _build(self, part: Part, progress: Progress) -> tuple[Network, Write]:
        versions = {
            "16 bits": lambda: self._compiled(
                part, parity.Cast(copy.deepcopy(part.module), torch.float16)
            ),
            "32 bits": lambda: self._compiled(part, copy.deepcopy(part.module)),
        }
        compiled = parity.first_faithful(part.name, versions, parity.Example.of(part), progress)

        def write(folder: Path) -> None:
            with quiet():
                self._library.save(compiled, str(folder / _ENGINE), arg_inputs=part.inputs)

        return compiled, write

    def _compiled(self, part: Part, module: nn.Module) -> Network:
        with quiet(), self._current():
            program = export(module.to(self._device), part)
            network: Network = self._library.dynamo.compile(
                program, arg_inputs=part.inputs, device=self._device, **_SETTINGS
            )
        return network

    def _current(self) -> AbstractContextManager[Any]:
        on_gpu = self._device.type == "cuda"  # a test's double runs on the CPU
        return torch.cuda.device(self._device) if on_gpu else nullcontext()

    def _load(self, folder: Path) -> Network:
        with quiet(), self._current():
            network: Network = self._library.load(str(folder / _ENGINE)).module()
        return network


def export(module: nn.Module, part: Part) -> torch.export.ExportedProgram:
    """Export a part's module for the shapes of its inputs; both are on the same device."""
    with torch.no_grad():
        return torch.export.export(module, part.inputs)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's and TensorRT's advice to developers out of a user's log; errors stay."""
    for name in ("torch.export", "torch_tensorrt", "torch_tensorrt [TensorRT Conversion Context]"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _libraries() -> tuple[Any, dict[str, str]]:
    """Return torch_tensorrt, and the kinds and versions of what belongs to it, for keys."""
    with quiet():
        # In this order: the first registers TensorRT for RTX as `tensorrt`, where it brings that.
        library = importlib.import_module("torch_tensorrt")
        runtime = importlib.import_module("tensorrt")
        logging.captureWarnings(False)  # which torch_tensorrt turns on for the whole process
    rtx = getattr(runtime, "_package_name", "tensorrt") == "tensorrt_rtx"
    kind = "TensorRT for RTX" if rtx else "TensorRT"
    return library, {
        "torch_tensorrt": library.__version__,
        "tensorrt": runtime.__version__,
        "kind": f"{kind} {runtime.__version__}",
    }


def _gpu(device: torch.device) -> dict[str, str]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "device": str(device),
    }


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
