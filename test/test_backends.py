"""Compiled backends: parity with PyTorch on real frames, refusal, the cache, Ψ beside Φ."""

import contextlib
import copy
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.small_models import SMALL_FEW_STEP, save_few_step

from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.resources import sample_video, user_cache
from magicfuse_ros.runtime import backends
from magicfuse_ros.runtime.artifacts import ArtifactCache
from magicfuse_ros.runtime.backends import openvino as openvino_backend
from magicfuse_ros.runtime.backends import parity
from magicfuse_ros.runtime.backends.openvino import OpenVinoBackend
from magicfuse_ros.runtime.backends.prepare import part_key
from magicfuse_ros.runtime.engine import EXTRAS, EngineError, EngineSettings, load_engine
from magicfuse_ros.sources.source import open_source

ALL = frozenset(EXTRAS)
CPU = torch.device("cpu")


def ignore(text):
    pass


@pytest.fixture(scope="module")
def frames():
    """Frames of the sample video."""
    pictures = open_source(sample_video()).frames()
    return [each.rgb for each in itertools.islice(pictures, 0, 40, 20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_few_step(tmp_path_factory.mktemp("models"))


@pytest.fixture
def load():
    engines = []

    def load(tell=ignore, **settings):
        engines.append(load_engine(EngineSettings(**{"device": "cpu", **settings}), tell))
        engines[-1].warm_up(tell)
        return engines[-1]

    yield load
    for made in engines:
        made.close()


@pytest.fixture(scope="module")
def references(frames):
    """What `tiny` gives for the frames in PyTorch."""
    settings = EngineSettings(model="tiny", backend="eager", device="cpu")
    with contextlib.closing(load_engine(settings, ignore)) as eager:
        eager.warm_up(ignore)
        return [eager.fuse(frame, ALL) for frame in frames]


@pytest.mark.parametrize("computing", ["f32", "as this CPU does best"])
def test_openvino_gives_what_pytorch_gives_on_real_frames(
    load, frames, references, computing, monkeypatch
):
    if computing == "f32":
        monkeypatch.setattr(openvino_backend, "precision", lambda _: "f32")
    capabilities = openvino_backend._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    exact = openvino_backend.precision(capabilities) == "f32"
    compiled = load(model="tiny", backend="openvino")
    assert compiled.backend_name == "openvino on cpu"
    for frame, reference in zip(frames, references, strict=True):
        ours = compiled.fuse(frame, ALL)
        for name in ("magimg", "infrared", "enhanced", "confidence"):
            apart = getattr(ours, name).astype(int) - getattr(reference, name)
            # Rounding may fall either way; a class at a border may be the other.
            most = 8.0 if name == "confidence" else 1.0  # these frames are unlike all it learned
            assert np.abs(apart).mean() < (0.05 if exact else most), name
        same = ours.mask == reference.mask
        assert same.mean() > (0.999 if exact else 0.95)
        # In 16 bits a class may change where none has 70 % of the probability, and only there.
        sure = reference.confidence > 178
        assert sure.mean() > 0.3
        assert same[sure].mean() > 0.999
        assert not exact or np.abs(ours.magimg.astype(int) - reference.magimg).max() <= 2


def test_auto_takes_openvino_on_a_cpu_and_two_steps_are_the_same_too(load, folder, frames):
    compiled = load(model=str(folder), steps=2)
    assert compiled.backend_name == "openvino on cpu"
    eager = load(model=str(folder), steps=2, backend="eager")
    ours, reference = compiled.fuse(frames[0], ALL), eager.fuse(frames[0], ALL)
    assert np.abs(ours.magimg.astype(int) - reference.magimg).max() <= 2
    again = compiled.fuse(frames[0], ALL)
    assert np.array_equal(ours.magimg, again.magimg)
    assert np.array_equal(ours.mask, again.mask)


def test_what_is_kept_from_frame_to_frame_is_not_copied_for_openvino(load, folder):
    networks = load(model=str(folder), backend="openvino")._networks.last
    for kept in (networks.image, *networks._noise):
        assert kept.contiguous().data_ptr() == kept.data_ptr()


def test_a_backend_without_parity_is_refused_and_the_next_one_runs(
    load, folder, frames, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # what is in the cache has passed already
    convert = openvino_backend.convert

    def wrong(part):
        if part.name != "psi":
            return convert(part)
        torch.manual_seed(9)
        stranger = MagicFuse.from_config(SMALL_FEW_STEP).eval()
        return convert(backends.Part("psi", stranger.psi, part.inputs))

    monkeypatch.setattr(openvino_backend, "convert", wrong)
    told = []
    made = load(told.append, model=str(folder))
    assert made.backend_name == "eager on cpu"
    (line,) = [text for text in told if "fails" in text]
    assert "psi in openvino differs from PyTorch by" in line
    assert "trying eager on cpu" in line
    assert made.fuse(frames[0]).magimg.shape == frames[0].shape


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x, 0.0),
        (lambda x: x * 1.005, 0.005),
        (lambda x: x * torch.nan, float("inf")),
        (lambda x: x[:, :1], float("inf")),
    ],
)
def test_parity_is_the_relative_root_mean_square_difference(change, expected):
    reference = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert parity.difference(change(reference), reference) == pytest.approx(expected, rel=1e-3)
    if expected > parity.TOLERANCE:
        with pytest.raises(EngineError, match="psi differs from PyTorch"):
            parity.check("psi", change(reference), reference)


def test_a_second_start_converts_nothing_and_damage_is_mended(
    load, folder, frames, monkeypatch, tmp_path
):
    first = load(model=str(folder), backend="openvino").fuse(frames[0])
    # Damaged below; other tests use the original meanwhile.
    whole = shutil.ignore_patterns(".new-*", "*.lock")
    shutil.copytree(user_cache(), tmp_path / "magicfuse", ignore=whole)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    converted = []
    convert = openvino_backend.convert
    monkeypatch.setattr(
        openvino_backend, "convert", lambda part: converted.append(part.name) or convert(part)
    )
    warm = load(model=str(folder), backend="openvino")
    assert converted == []
    assert np.array_equal(warm.fuse(frames[0]).magimg, first.magimg)

    for path in user_cache().glob("artifacts/*/compiled.blob"):
        path.write_bytes(path.read_bytes()[:-1])
    for manifest in user_cache().glob("artifacts/*/manifest.json"):
        graph = manifest.with_name("model.bin")
        if graph.exists() and json.loads(manifest.read_text())["key"]["part"] in {"psi", "decoder"}:
            graph.write_bytes(graph.read_bytes()[:-1])
    told = []
    mended = load(told.append, model=str(folder), backend="openvino")
    assert sorted(converted) == ["decoder", "psi"]
    assert sum("made anew: compiled.blob is not what was written" in text for text in told) == 5
    assert sum("is made anew: model.bin is not what was written" in text for text in told) == 2
    assert np.array_equal(mended.fuse(frames[0]).magimg, first.magimg)


def test_an_artifact_that_has_lost_parity_is_made_anew(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(1)
    image = (torch.randn(1, 3, 8, 8),)
    part = backends.Part("any", torch.nn.Conv2d(3, 4, 3).eval(), image)
    stranger = backends.Part("any", torch.nn.Conv2d(3, 4, 3).eval(), image)
    convert = openvino_backend.convert
    with monkeypatch.context() as patch:
        patch.setattr(openvino_backend, "convert", lambda _: convert(stranger))
        patch.setattr(parity, "TOLERANCE", float("inf"))
        OpenVinoBackend(CPU, 1).compile(part, ignore)

    told = []
    backend = OpenVinoBackend(CPU, 1)
    network = backend.compile(part, told.append)
    # What was compiled, and the graph that it came from.
    assert sum("is made anew: any in openvino differs from PyTorch" in text for text in told) == 2
    assert backend.built == ["any"]
    assert parity.difference(network(*image), part.reference) < 0.01
    again, told = OpenVinoBackend(CPU, 1), []
    again.compile(part, told.append)
    assert (again.built, told) == ([], [])


def test_a_compiled_network_that_does_not_load_is_made_from_its_graph(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    part = backends.Part("any", torch.nn.Conv2d(3, 4, 3).eval(), (torch.randn(1, 3, 8, 8),))

    def of_no_use(_, folder):  # though whole
        (folder / "compiled.blob").write_bytes(b"no")
        (folder / "precision").write_text("f32")

    with monkeypatch.context() as patch:
        patch.setattr(openvino_backend._Request, "export", of_no_use)
        OpenVinoBackend(CPU, 1).compile(part, ignore)
    told = []
    backend = OpenVinoBackend(CPU, 1)
    network = backend.compile(part, told.append)
    assert backend.built == []
    assert "is made anew" in told[0]
    assert told[1:] == ["compiling any"]
    assert parity.difference(network(*part.inputs), part.reference) < 0.01


def test_the_key_names_whatever_makes_a_network_another_one():
    def key(module, size=8, config="", **more):
        part = backends.Part("any", module.eval(), (torch.zeros(1, 4, size, size),), config)
        return part_key("openvino", part, **more)

    torch.manual_seed(2)
    convolution = torch.nn.Conv2d(4, 4, 3)
    known = key(convolution)
    assert key(copy.deepcopy(convolution)) == known
    other = copy.deepcopy(convolution)
    with torch.no_grad():
        other.bias[0] += 1e-6
    keys = [
        known,
        key(other),
        key(convolution, size=16),
        key(convolution, config="heads=4"),
        key(convolution, openvino="1.0"),
        key(torch.nn.Sequential(convolution)),
    ]
    assert len({ArtifactCache(Path("any"), ignore).path(each) for each in keys}) == len(keys)


def test_without_a_cache_folder_it_runs_all_the_same(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    part = backends.Part("any", torch.nn.Conv2d(3, 4, 3).eval(), (torch.randn(1, 3, 8, 8),))
    told = []
    backend = OpenVinoBackend(CPU, 1)
    network = backend.compile(part, told.append)
    assert backend.built == ["any"]
    assert any("artifacts may not be kept" in text for text in told)
    assert parity.difference(network(*part.inputs), part.reference) < 0.01


def test_side_by_side_and_in_turn_give_the_same(load, folder, frames):
    engines = [
        load(model=str(folder), backend="openvino", steps=2, threads=2, parallel=parallel)
        for parallel in ("on", "off")
    ]
    results = [each.fuse(frames[0], ALL) for each in engines]
    for result in results[1:]:
        assert np.abs(result.magimg.astype(int) - results[0].magimg).max() <= 1
        assert (result.mask == results[0].mask).mean() > 0.999


def test_a_network_that_loses_parity_in_16_bits_computes_in_32(tmp_path, monkeypatch):
    capabilities = openvino_backend._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if openvino_backend.precision(capabilities) == "f32":
        pytest.skip("this CPU has no instructions for bfloat16")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # The small difference of large numbers is what 16 bits cannot tell.
    convolution = torch.nn.Conv2d(2, 1, 1, bias=False).eval()
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1))
    image = 100.0 + torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    part = backends.Part("any", convolution, (image,))
    told = []
    first = OpenVinoBackend(CPU, 1).compile(part, told.append)
    assert sum("any computes in 32 bits: any in 16 bits differs" in text for text in told) == 1
    backend, told = OpenVinoBackend(CPU, 1), []
    again = backend.compile(part, told.append)
    assert (backend.built, told) == ([], [])
    for network in (first, again):
        assert parity.difference(network(image), part.reference) < 1e-4


def test_networks_compute_in_bfloat16_where_the_cpu_has_instructions_for_it():
    assert openvino_backend.precision(["FP32", "INT8", "BIN", "EXPORT_IMPORT"]) == "f32"
    assert openvino_backend.precision(["BF16", "FP32", "INT8"]) == "bf16"
    assert openvino_backend.precision(["FP32", "FP16"]) == "f32"  # on ARM: not measured


def test_one_thread_has_nothing_to_share():
    for threads, expected in ((1, False), (2, True)):
        backend = OpenVinoBackend(CPU, threads)
        assert backend.side_by_side is expected
        backend.close()
