"""`openvino`: the networks compiled by OpenVINO for the CPU.

Nothing here calls `openvino.convert_model`: it reports its use over the network.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magicfuse_ros.runtime.backends import parity
from magicfuse_ros.runtime.backends.prepare import Write, part_key, prepare
from magicfuse_ros.runtime.concurrency import StartedNetwork
from magicfuse_ros.runtime.contract import EngineError, Progress
from magicfuse_ros.runtime.parts import Network, Part

_MODEL, _COMPILED, _PRECISION = "model.xml", "compiled.blob", "precision"
_HINT, _EXACT = "INFERENCE_PRECISION_HINT", "f32"
_BITS = {"bf16": "16 bits", _EXACT: "32 bits"}


class OpenVinoBackend:
    """Compiles each part for the one shape of its inputs.

    Where the CPU has instructions for it, networks compute in bfloat16. That takes two thirds of
    the time and changes pictures by less than a grey level on average; on other CPUs it gains
    nothing. A network that loses parity in bfloat16 computes in 32 bits.

    Two things are kept in the artifact cache: the graph, which is the same on every CPU, and what
    is compiled from it for this one, which is loaded in a third of the time that compiling takes.

    Parameters
    ----------
    device
        A CPU.
    threads
        How many cores a network may use; 0 takes all that this process may use.
    """

    device_type = "cpu"
    memory_format = torch.contiguous_format  # OpenVINO reads its inputs in place
    compiles = True
    # What PyTorch does around the networks is small; its threads wait for each other by spinning,
    # which on busy cores costs many times what they gain, and keeps OpenVINO's threads waiting.
    pytorch_threads = 1

    def __init__(self, device: torch.device, threads: int) -> None:  # noqa: ARG002 - the CPU
        self.built: list[str] = []
        self.in_pytorch: dict[str, str] = {}
        self._threads = threads or len(os.sched_getaffinity(0))
        self.side_by_side = self._threads >= 2
        self._core: Any = _core()
        self._precision = precision(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))

    @staticmethod
    def unavailable() -> str:
        """Say that it is not installed."""
        if importlib.util.find_spec("openvino") is None:
            return "it is not installed; run: pip install openvino"
        return ""

    def compile(self, part: Part, progress: Progress) -> Network:
        """Compile a part for all of the cores.

        Raises
        ------
        EngineError
            The compiled network does not give what the module gives.
        """
        return self._prepare(part, progress, self._threads)

    def share(self, part: Part, progress: Progress) -> StartedNetwork:
        """Compile a part for half of the cores; raises as `compile`."""
        return self._prepare(part, progress, self._threads // 2)

    def _prepare(self, part: Part, progress: Progress, threads: int) -> _Request:
        version = importlib.metadata.version("openvino")
        key = part_key("openvino", part, openvino=version)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # Two networks side by side would be pinned to the same cores.
            "ENABLE_CPU_PINNING": False,
        }

        def compiled(model: Any, precision: str) -> _Request:
            given = settings | {_HINT: precision}
            return _Request(self._core.compile_model(model, "CPU", given), precision)

        def fastest(model: Any, example: parity.Example) -> _Request:
            versions = {
                _BITS[each]: functools.partial(compiled, model, each)
                for each in dict.fromkeys((self._precision, _EXACT))
            }
            return parity.first_faithful(part.name, versions, example, progress)

        def load_graph(folder: Path) -> _Request:
            model = self._core.read_model(folder / _MODEL)
            return fastest(model, parity.read_example(folder))

        def build_graph() -> tuple[_Request, Write]:
            model = convert(part)
            network = fastest(model, parity.Example.of(part))
            return network, lambda folder: _save(model, folder / _MODEL)

        def build() -> tuple[_Request, Write]:
            network = prepare(
                part,
                key,
                progress,
                load=load_graph,
                build=build_graph,
                built=self.built,
                doing="converting",
            )
            return network, network.export

        def load(folder: Path) -> _Request:
            precision = (folder / _PRECISION).read_text(encoding="ascii")
            blob = (folder / _COMPILED).read_bytes()
            network = self._core.import_model(blob, "CPU", settings | {_HINT: precision})
            return _Request(network, precision)

        own = {
            **key,
            "settings": str(settings),
            "precision": self._precision,
            "cpu": _cpu(self._core),
        }
        return prepare(part, own, progress, load=load, build=build, built=[])

    def close(self) -> None:
        """Let go of nothing: the compiled parts hold what they need, and the Core stays."""


def precision(capabilities: Sequence[str]) -> str:
    """Return the precision of networks on a CPU with these OPTIMIZATION_CAPABILITIES."""
    return "bf16" if "BF16" in capabilities else _EXACT


@functools.lru_cache(maxsize=1)
def _core() -> Any:
    """Return this process's one Core, for as long as it lives.

    When the last Core goes, the CPU plugin's library is unloaded, and after that the process
    crashes when it forks.
    """
    import openvino

    core = openvino.Core()
    # Mapped weights change with their file: damage to it would change the pictures of a running
    # node, and truncating it would end the node with SIGBUS.
    core.set_property({"ENABLE_MMAP": False})
    return core


def _cpu(core: Any) -> str:
    """Return a hash of what compiled networks depend on: the CPU's model and what it can do."""
    names = "FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES"
    about = [str(core.get_property("CPU", name)) for name in names]
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        # x86 calls them flags, ARM Features. All cores are read, since they may differ.
        about += sorted({line for line in lines if line.startswith(("flags", "Features"))})
    return hashlib.sha256(" ".join(about).encode()).hexdigest()


def read_network(path: Path) -> Network:
    """Read a model file, OpenVINO's own or ONNX, and compile it for the CPU in 32 bits."""
    core = _core()
    network = core.compile_model(core.read_model(path), "CPU", {_HINT: _EXACT})
    return _Request(network, _EXACT)


class _Request:
    """One compiled network and its one infer request; only one thread at a time may use it."""

    def __init__(self, compiled: Any, precision: str) -> None:
        self._compiled, self._outputs = compiled, len(compiled.outputs)
        self._precision = precision
        self._request = compiled.create_infer_request()

    def __call__(self, *inputs: Tensor) -> Any:
        self.start(*inputs)
        return self.finish()

    def export(self, folder: Path) -> None:
        """Write what `import_model` reads, and the precision that it has to be told."""
        (folder / _COMPILED).write_bytes(self._compiled.export_model().getvalue())
        (folder / _PRECISION).write_text(self._precision, encoding="ascii")

    def start(self, *inputs: Tensor) -> None:
        """Begin; see `StartedNetwork`."""
        # OpenVINO reads its inputs in place: they have to stay until it has finished.
        self._inputs = [each.contiguous().numpy() for each in inputs]
        self._request.start_async(self._inputs, share_inputs=True)

    def finish(self) -> Any:
        """Wait and return the outputs; see `StartedNetwork`."""
        self._request.wait()
        # Copied: the next call overwrites them.
        results = [
            torch.from_numpy(self._request.get_output_tensor(i).data).clone()
            for i in range(self._outputs)
        ]
        return results[0] if len(results) == 1 else tuple(results)


def convert(part: Part) -> Any:
    """Trace the module and turn the graph into an OpenVINO model of fixed shapes."""
    from openvino import PartialShape
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    inputs = tuple(each.contiguous() for each in part.inputs)
    frontend = FrontEndManager().load_by_framework("pytorch")
    with torch.inference_mode(), warnings.catch_warnings():
        # Sizes become constants in a trace, which is what fixed shapes want.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        # Its own check of the trace runs the module twice more; parity compares the outcome.
        decoder = TorchScriptPythonDecoder(
            part.module, example_input=inputs, trace_kwargs={"check_trace": False}
        )
        model = frontend.convert(frontend.load(decoder))
    if len(model.inputs) != len(inputs):
        raise EngineError(f"{part.name} has lost an input on its way into OpenVINO")
    for node, example in zip(model.inputs, inputs, strict=True):
        node.get_node().set_partial_shape(PartialShape(list(example.shape)))
    model.validate_nodes_and_infer_types()
    return model


def _save(model: Any, path: Path) -> None:
    import openvino

    openvino.save_model(model, path, compress_to_fp16=False)
