"""The TensorRT backend without a GPU: what it exports, and what it asks of its library's double.

The double compiles nothing: it runs the exported program. No test here says that TensorRT works.
"""

import copy
import dataclasses
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from support.small_models import SMALL_PAPER, SMALL_REFINED, stored

from magicfuse_ros.runtime.backends import (
    BACKENDS,
    Candidate,
    Part,
    candidates,
    parity,
    tensorrt,
)
from magicfuse_ros.runtime.backends.tensorrt import InHalf, TensorRtBackend, export
from magicfuse_ros.runtime.contract import EngineError
from magicfuse_ros.runtime.parts import parts_of

CPU = torch.device("cpu")


def ignore(text):
    pass


def parts(config, folder):
    return parts_of(stored(config, folder), (48, 64), lambda tensor: tensor)


# `paper` with fewer levels: all its kinds of layers, each in as few places as they can be.
SHALLOW = {"width": 16, "norm_groups": 8, "multipliers": (1, 2), "attention_levels": (1,)}
SHALLOW_PAPER = dataclasses.replace(
    SMALL_PAPER,
    name="shallow-paper",
    psi=dataclasses.replace(SMALL_PAPER.psi, blocks=1, **SHALLOW),
    phi=dataclasses.replace(SMALL_PAPER.phi, blocks=1, **SHALLOW),
    fusion=dataclasses.replace(
        SMALL_PAPER.fusion, widths=(16, 16), scales=(1, 1), attention=(True, True)
    ),
)


@pytest.mark.parametrize("config", [SMALL_REFINED, SHALLOW_PAPER], ids=lambda each: each.name)
def test_every_part_is_exported_as_it_is_in_16_bits(config, tmp_path):
    for name, part in parts(config, tmp_path).items():
        half = InHalf(copy.deepcopy(part.module))
        program = export(half, part)
        result = program.module()(*part.inputs)
        with torch.no_grad():
            assert parity.difference(result, half(*part.inputs)) < 1e-6, name
        # Noise is an input: drawn inside, it would be frozen when the engine is built.
        assert len(program.graph_signature.user_inputs) == len(part.inputs)
        drawn = [node for node in program.graph.nodes if "rand" in str(node.target)]
        assert drawn == [], name
        assert {each.dtype for each in parity.tensors(result)} == {torch.float32}, name
        # Different, or it was never cast; and no more than half precision is worth.
        assert 0.0 < parity.difference(result, part.reference) < 5e-3, name
        assert {each.dtype for each in program.state_dict.values()} == {torch.float16}, name


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A double of torch_tensorrt; `compiled` lists what it was asked, `scale` spoils results.

    With `refuses_half` it cannot build what computes in 16 bits.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    double, runtime = ModuleType("torch_tensorrt"), ModuleType("tensorrt")
    double.__version__, runtime.__version__ = "2.14", "11.1"
    double.compiled, double.scale, double.refuses_half = [], 1.0, False

    class Compiled:
        def __init__(self, program):
            self.program, self.network = program, program.module()

        def __call__(self, *inputs):
            return double.scale * self.network(*inputs)

    def compile_(program, *, arg_inputs, **settings):
        double.compiled.append((program, arg_inputs, settings))
        if double.refuses_half and in_half(program):
            raise RuntimeError("no tactic for\nGroupNorm")
        return Compiled(program)

    def save(compiled, path, *, arg_inputs):
        torch.export.save(compiled.program, path)

    double.dynamo = SimpleNamespace(compile=compile_)
    double.save, double.load = save, torch.export.load
    # As an installed module has one: torch asks for it when it is first told to export.
    for module in (double, runtime):
        module.__spec__ = ModuleSpec(module.__name__, loader=None)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", double)
    monkeypatch.setitem(sys.modules, "tensorrt", runtime)
    gpu = {"gpu": "A GPU", "capability": "9.0"}
    monkeypatch.setattr(tensorrt, "_gpu", lambda _device: gpu)
    double.gpu = gpu
    return double


def convolution(offset=0.0):
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 4, 3).eval()
    return Part("any", network, (offset + torch.randn(1, 3, 8, 8),))


def in_half(program):
    return {each.dtype for each in program.state_dict.values()} == {torch.float16}


def test_a_part_is_built_whole_for_its_inputs_and_found_again(library):
    part = convolution()
    backend = TensorRtBackend(CPU, 0)
    network = backend.compile(part, ignore)
    assert parity.difference(network(*part.inputs), part.reference) < 1e-3
    ((program, inputs, settings),) = library.compiled
    assert in_half(program)
    assert inputs == part.inputs
    assert settings == {
        "min_block_size": 1,
        "require_full_compilation": True,
        "pass_through_build_failures": True,
        "immutable_weights": True,
        "use_fp32_acc": True,
    }
    assert backend.built == ["any"]

    again = TensorRtBackend(CPU, 0)
    loaded = again.compile(part, ignore)
    assert again.built == []
    assert len(library.compiled) == 1
    assert torch.equal(loaded(*part.inputs), network(*part.inputs))


@pytest.mark.parametrize(
    ("part", "refuses_half", "why"),
    [
        (convolution(), True, "no tactic for GroupNorm"),
        # Past 65504 half precision ends.
        (convolution(1e5), False, "any in 16 bits differs from PyTorch by inf"),
    ],
    ids=["cannot be built", "loses parity"],
)
def test_what_16_bits_are_not_enough_for_computes_in_32(library, part, refuses_half, why):
    library.refuses_half, told = refuses_half, []
    network = TensorRtBackend(CPU, 0).compile(part, told.append)
    assert parity.difference(network(*part.inputs), part.reference) < 1e-6
    assert [in_half(program) for program, _, _ in library.compiled] == [True, False]
    (line,) = [text for text in told if "32 bits" in text]
    assert line.startswith(f"any computes in 32 bits: {why}")

    # The outcome is kept: it is not tried again.
    loaded = TensorRtBackend(CPU, 0).compile(part, told.append)
    assert len(library.compiled) == 2
    assert torch.equal(loaded(*part.inputs), network(*part.inputs))


@pytest.mark.parametrize("change", ["gpu", "capability", "torch_tensorrt", "tensorrt"])
def test_another_gpu_or_library_makes_another_engine(library, change):
    part = convolution()
    TensorRtBackend(CPU, 0).compile(part, ignore)
    if change in library.gpu:
        library.gpu[change] = "another"
    else:
        sys.modules[change].__version__ = "another"
    TensorRtBackend(CPU, 0).compile(part, ignore)
    assert len(library.compiled) == 2


def test_an_engine_that_is_wrong_is_refused_and_not_kept(library, tmp_path):
    library.scale = 1.1
    with pytest.raises(EngineError, match=r"any in tensorrt differs from PyTorch by 0\.1"):
        TensorRtBackend(CPU, 0).compile(convolution(), ignore)
    assert list(tmp_path.rglob("manifest.json")) == []


def test_beside_another_the_same_engine_runs_on_a_stream_of_its_own(library, monkeypatch):
    made = []
    monkeypatch.setattr(
        tensorrt, "StreamNetwork", lambda network, _device: made.append(network) or "stream"
    )
    part, backend = convolution(), TensorRtBackend(CPU, 0)
    network = backend.compile(part, ignore)
    assert backend.share(part, ignore) == "stream"
    assert made == [network]
    assert len(library.compiled) == 1


def test_it_is_the_first_choice_on_a_gpu_and_none_on_a_cpu(monkeypatch):
    assert next(iter(BACKENDS)) == "tensorrt"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(TensorRtBackend, "unavailable", staticmethod(lambda: ""))
    first = candidates("auto", "auto")[0]
    assert first == Candidate("tensorrt", torch.device("cuda", 0))
    assert "tensorrt" not in {each.name for each in candidates("auto", "cpu")}


def test_where_it_is_not_installed_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    assert TensorRtBackend.unavailable() == "it is not installed; run: pip install torch-tensorrt"
