"""The TensorRT backend without a GPU: what it exports, and what it asks of its library's double.

The double compiles nothing: it runs the exported program. No test here says that TensorRT works.
"""

import copy
import dataclasses
import importlib
import importlib.metadata
import logging
import re
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from support.small_models import SMALL_PAPER, SMALL_REFINED, save_few_step, stored

from magicfuse_ros.runtime.backends import (
    BACKENDS,
    Candidate,
    Part,
    candidates,
    parity,
    tensorrt,
)
from magicfuse_ros.runtime.backends.eager import in_fewest_bits
from magicfuse_ros.runtime.backends.parity import Cast
from magicfuse_ros.runtime.backends.tensorrt import TensorRtBackend, export
from magicfuse_ros.runtime.contract import EngineSettings
from magicfuse_ros.runtime.engine import load_engine
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


@pytest.mark.no_cover  # other tests run its lines; the tracer would slow the export by half
@pytest.mark.parametrize("config", [SMALL_REFINED, SHALLOW_PAPER], ids=lambda each: each.name)
def test_every_part_is_exported_as_it_is_in_16_bits(config, tmp_path):
    for name, part in parts(config, tmp_path).items():
        half = Cast(copy.deepcopy(part.module), torch.float16)
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

    With `refuses_half` it cannot build what computes in 16 bits, with `refuses` nothing.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    double, runtime = ModuleType("torch_tensorrt"), ModuleType("tensorrt")
    double.__version__, runtime.__version__ = "2.14", "11.1"
    double.compiled, double.scale, double.refuses_half, double.refuses = [], 1.0, False, ""

    class Compiled:
        def __init__(self, program):
            self.program, self.network = program, program.module()

        def __call__(self, *inputs):
            return double.scale * self.network(*inputs)

    def compile_(program, *, arg_inputs, device, **settings):
        assert device == CPU
        warnings.warn("advice to developers", stacklevel=1)
        logging.getLogger("torch_tensorrt.dynamo").warning("advice to developers")
        double.compiled.append((program, arg_inputs, settings))
        if double.refuses:
            raise RuntimeError(double.refuses)
        if double.refuses_half and in_half(program):
            raise RuntimeError("no tactic for\nGroupNorm")
        return Compiled(program)

    def save(compiled, path, *, arg_inputs):
        assert path.endswith(".pt2")
        torch.export.save(compiled.program, path)

    double.dynamo = SimpleNamespace(compile=compile_)
    double.save, double.load = save, torch.export.load
    # As an installed module has one: torch asks for it when it is first told to export.
    for module in (double, runtime):
        module.__spec__ = ModuleSpec(module.__name__, loader=None)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", double)
    monkeypatch.setitem(sys.modules, "tensorrt", runtime)
    gpu = {"gpu": "A GPU", "capability": "9.0", "device": "cuda:0"}
    monkeypatch.setattr(tensorrt, "_gpu", lambda _device: gpu)
    double.gpu = gpu
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what a user would see
        yield double


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


@pytest.mark.parametrize("change", ["gpu", "capability", "device", "torch_tensorrt", "tensorrt"])
def test_another_gpu_or_library_makes_another_engine(library, change):
    part = convolution()
    TensorRtBackend(CPU, 0).compile(part, ignore)
    if change in library.gpu:
        library.gpu[change] = "another"
    else:
        sys.modules[change].__version__ = "another"
    TensorRtBackend(CPU, 0).compile(part, ignore)
    assert len(library.compiled) == 2


def spoiled(library):
    library.scale = 1.1


def refusing(library):
    library.refuses = "no tactic"


@pytest.mark.parametrize(
    ("fails", "why", "tried_again"),
    [
        (spoiled, r"any in tensorrt differs from PyTorch by 0\.1", False),
        (refusing, "no tactic", True),  # for want of memory, perhaps
    ],
)
def test_a_part_that_fails_runs_in_pytorch_alone(library, fails, why, tried_again):
    other = dataclasses.replace(convolution(), name="other")
    backend, told = TensorRtBackend(CPU, 0), []
    backend.compile(other, ignore)
    fails(library)
    part = convolution()
    network = backend.compile(part, told.append)
    assert parity.difference(network(*part.inputs), part.reference) < 1e-6
    assert list(backend.in_pytorch) == ["any"]
    assert re.match(why, backend.in_pytorch["any"])
    assert any(re.match(f"any runs in PyTorch and not in TensorRT 11.1: {why}", t) for t in told)

    again, tried = TensorRtBackend(CPU, 0), len(library.compiled)
    again.compile(part, ignore)
    assert again.in_pytorch == backend.in_pytorch
    assert (len(library.compiled) > tried) is tried_again


def test_an_engine_says_which_part_is_left_to_pytorch_and_why(library, monkeypatch, tmp_path):
    class OnCpu(TensorRtBackend):
        device_type = "cpu"
        side_by_side = False  # streams need a GPU

    only = {"tensorrt": OnCpu, "eager": BACKENDS["eager"]}
    monkeypatch.setattr("magicfuse_ros.runtime.backends.BACKENDS", only)
    wanted = EngineSettings(model=str(save_few_step(tmp_path)), device="cpu")
    engine = load_engine(wanted, ignore)
    compile_ = library.dynamo.compile

    def refuse_fusion(program, **settings):
        if len(program.graph_signature.user_inputs) == 7:
            raise RuntimeError("no tactic")
        return compile_(program, **settings)

    library.dynamo.compile = refuse_fusion
    engine.warm_up(ignore)
    assert engine.parts_warning == (
        "tensorrt on cpu runs fusion in PyTorch, which is slower (fusion: no tactic)"
    )
    assert engine.built == ("encoder", "psi", "phi", "decoder")
    eager = load_engine(dataclasses.replace(wanted, backend="eager"), ignore)
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    ours, theirs = engine.fuse(frame), eager.fuse(frame)
    assert np.abs(ours.magimg.astype(int) - theirs.magimg).max() <= 1
    assert eager.parts_warning == ""
    for each in (engine, eager):
        each.close()


def test_the_rtx_kind_is_named_and_torch_tensorrt_comes_first(library, monkeypatch):
    order, real = [], importlib.import_module
    monkeypatch.setattr(
        tensorrt.importlib, "import_module", lambda name: order.append(name) or real(name)
    )
    sys.modules["tensorrt"]._package_name = "tensorrt_rtx"
    library.refuses, told = "no tactic", []
    TensorRtBackend(CPU, 0).compile(convolution(), told.append)
    assert order == ["torch_tensorrt", "tensorrt"]
    assert "any runs in PyTorch and not in TensorRT for RTX 11.1: no tactic" in told


def test_a_part_on_a_stream_comes_from_the_cache(library, monkeypatch):
    monkeypatch.setattr(tensorrt, "StreamNetwork", lambda network, _device: network)
    part, backend = convolution(), TensorRtBackend(CPU, 0)
    network = backend.compile(part, ignore)
    assert torch.equal(backend.share(part, ignore)(*part.inputs), network(*part.inputs))
    assert len(library.compiled) == 1


@pytest.mark.parametrize(
    ("offset", "dtype"), [(0.0, torch.float16), (1e5, torch.bfloat16), (None, None)]
)
def test_in_pytorch_a_part_computes_in_half_or_bfloat16_or_32_bits(offset, dtype):
    part, told = convolution(offset or 0.0), []
    if offset is None:  # the small difference of large numbers, past where half precision ends
        network = torch.nn.Conv2d(2, 1, 1, bias=False).eval()
        with torch.no_grad():
            network.weight.copy_(torch.tensor([1e6, -1e6]).reshape(1, 2, 1, 1))
        part = Part("any", network, (1e5 + torch.randn(1, 2, 8, 8),))
    found = in_fewest_bits(part.module, part, told.append)
    assert getattr(found, "dtype", None) == dtype
    assert parity.difference(found(*part.inputs), part.reference) <= parity.TOLERANCE
    assert len(told) == {torch.float16: 0, torch.bfloat16: 1, None: 2}[dtype]
    assert {each.dtype for each in part.module.parameters()} == {torch.float32}


def test_it_is_the_first_choice_on_a_gpu_and_none_on_a_cpu(monkeypatch):
    assert next(iter(BACKENDS)) == "tensorrt"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(TensorRtBackend, "unavailable", staticmethod(lambda: ""))
    first = candidates("auto", "auto")[0]
    assert first == Candidate("tensorrt", torch.device("cuda", 0))
    assert "tensorrt" not in {each.name for each in candidates("auto", "cpu")}


def test_where_it_is_not_installed_or_too_old_it_says_what_to_do(library, monkeypatch):
    versions = {"torch-tensorrt-rtx": "2.9.1"}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert TensorRtBackend.unavailable() == (
        "torch-tensorrt-rtx is 2.9.1; accepted: 2.10 or newer; "
        "run: pip install --upgrade torch-tensorrt-rtx"
    )
    versions["torch-tensorrt-rtx"] = "2.11.0+cu130"
    assert TensorRtBackend.unavailable() == ""
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    assert TensorRtBackend.unavailable() == (
        "it is not installed; run: pip install torch-tensorrt, or torch-tensorrt-rtx for a GeForce "
        "or RTX GPU; for a Jetson it is built from its source, see docs/gpu.md"
    )
