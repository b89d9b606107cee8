"""What only a GPU can show; what a CPU can run of it with doubles runs there too.

On the CPU the engine goes the GPU's way with a graph that is a double. Tests of the graph's results
compute in 32 bits on both, so that they may be compared with the CPU's own path.
"""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.device_frames import Double, assert_same, frame, ignore, make, save_telling
from support.small_models import SMALL_FEW_STEP, SMALL_REFINED

from magicfuse_ros.runtime.backends import Part, eager, parity
from magicfuse_ros.runtime.backends.eager import EagerBackend
from magicfuse_ros.runtime.backends.parity import Cast
from magicfuse_ros.runtime.contract import EXTRAS
from magicfuse_ros.runtime.device_frames import DeviceFrames
from magicfuse_ros.runtime.engine import load_model
from magicfuse_ros.runtime.parts import parts_of

ALL = frozenset(EXTRAS)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module", params=["refined", "decoded"])
def folder(request, tmp_path_factory):
    config = SMALL_REFINED if request.param == "refined" else SMALL_FEW_STEP
    return save_telling(config, tmp_path_factory.mktemp("models"))


@pytest.fixture
def exact(monkeypatch):
    """Compute in 32 bits on a GPU too, and not in TF32."""
    monkeypatch.setattr(eager, "in_fewest_bits", lambda module, _part, _progress: module)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on(device, folder, told=None, **settings):
    """Make an engine that goes the GPU's way on a device."""
    if device == "cpu":
        return make(folder, Double(), told, **settings)
    engine = make(folder, device=device, **settings)
    if told is not None:
        networks = engine._networks.last
        networks.frames = DeviceFrames(networks, torch.device("cuda", 0), told.append)
    return engine


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", [{"steps": 3}, {"temporal": 0.8}], ids=str)
def test_a_graph_gives_what_the_cpu_gives(device, folder, exact, settings):
    told = []
    ours, theirs = on(device, folder, told, **settings), make(folder, **settings)
    for seed in range(4):
        result = ours.fuse(frame(seed), ALL)
        assert_same(result, theirs.fuse(frame(seed), ALL))
        assert min(result.stage_ms[name] for name in ("encode", "denoise", "decode")) > 0.0
    assert told == []
    assert [work.replay is not None for work in ours._networks.last.frames._works.values()] == [
        True
    ]


@pytest.mark.gpu
def test_networks_side_by_side_on_streams_give_what_they_give_in_turn(folder, exact):
    beside, in_turn = (on("cuda", folder, parallel=each, steps=3) for each in ("on", "off"))
    assert beside.side_by_side
    assert not in_turn.side_by_side
    for seed in range(20):  # a race would show now and then
        assert_same(beside.fuse(frame(seed)), in_turn.fuse(frame(seed)))


@pytest.mark.parametrize("device", DEVICES)
def test_in_half_every_part_keeps_parity(device, folder):
    place = torch.device(device)
    for name, part in parts_of(
        load_model(str(folder)), (48, 64), lambda each: each.to(place)
    ).items():
        network = eager.in_fewest_bits(part.module.to(place), part, print)
        assert isinstance(network, Cast), name
        assert {each.dtype for each in network.parameters()} == {network.dtype}
        reference = parity.tensors(part.module.cpu()(*(each.cpu() for each in part.inputs)))
        assert parity.difference(network(*part.inputs), reference) <= parity.TOLERANCE, name


@pytest.mark.gpu
def test_eager_on_a_gpu_computes_in_half_and_leaves_the_model_as_it_was():
    convolution = torch.nn.Conv2d(3, 8, 3)
    image = torch.randn(1, 3, 16, 16, device="cuda")
    network = EagerBackend(torch.device("cuda", 0), 0).compile(
        Part("any", convolution, (image,)), ignore
    )
    assert network.dtype == torch.float16
    assert {(each.dtype, each.device.type) for each in convolution.parameters()} == {
        (torch.float32, "cpu")
    }


@pytest.mark.gpu
@pytest.mark.skipif(
    importlib.util.find_spec("torch_tensorrt") is None,
    reason="needs torch-tensorrt; docs/gpu.md says which",
)
def test_tensorrt_builds_every_part_and_gives_what_the_cpu_gives(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = save_telling(SMALL_REFINED, tmp_path)
    ours, theirs = make(folder, device="cuda", backend="tensorrt"), make(folder)
    assert ours.backend_name == "tensorrt on cuda:0"
    assert ours.parts_warning == ""
    for seed in range(3):
        one, other = ours.fuse(frame(seed)), theirs.fuse(frame(seed))
        assert np.abs(one.magimg.astype(int) - other.magimg).mean() < 1.0
        assert (one.mask == other.mask).mean() > 0.95


@pytest.mark.parametrize("device", DEVICES)
def test_two_engines_on_one_gpu_do_not_disturb_each_other(device, folder, exact):
    first, second = on(device, folder, temporal=0.8), on(device, folder, steps=3)
    alone = make(folder, temporal=0.8), make(folder, steps=3)
    for seed in range(4):
        for ours, theirs in zip((first, second), alone, strict=True):
            assert_same(ours.fuse(frame(seed)), theirs.fuse(frame(seed)))


@pytest.mark.gpu
def test_memory_does_not_grow_with_the_changes_of_cameras(tmp_path):
    engine = on("cuda", save_telling(SMALL_REFINED, tmp_path))
    used = []
    for change in range(100):
        engine.fuse(frame(0, (96, 128) if change % 2 else (128 - 8 * (change % 5), 96)))
        torch.cuda.synchronize()
        used.append(torch.cuda.memory_allocated())
    assert max(used[50:]) <= 1.1 * max(used[:50])


@pytest.mark.parametrize("device", DEVICES)
def test_what_cannot_be_in_a_graph_runs_without_and_is_told(device, folder, exact):
    told = []
    ours, theirs = on(device, folder, told), make(folder)
    networks = ours._networks.last
    networks._encoder = reading(networks._encoder)
    if device == "cpu":  # where reading is allowed
        networks.frames._capture = Double(fails=True)
    for seed in range(3):
        assert_same(ours.fuse(frame(seed)), theirs.fuse(frame(seed)))
    assert any(text.startswith("frames run without a CUDA graph: ") for text in told)


def reading(network):
    """Return a network that waits for its own result, which no capture allows."""

    def read(*inputs):
        result = network(*inputs)
        assert bool(torch.isfinite(result).all())
        return result

    return read


LOST = """
import sys
import numpy as np, torch
from magicfuse_ros.runtime.engine import EngineSettings, load_engine
engine = load_engine(EngineSettings(model=sys.argv[1], backend="eager", device="auto"), print)
engine.warm_up(lambda text: None)
assert engine.backend_name == "eager on cuda:0", engine.backend_name
frame = np.full((96, 128, 3), 90, np.uint8)
engine.fuse(frame)
try:  # an assertion on the device: nothing can be computed in this process any more
    torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")].sum().item()
except RuntimeError:
    pass
try:
    engine.fuse(frame)
except RuntimeError as error:
    print("lost:", type(error).__name__)
print("now", engine.fall_back(lambda text: None), engine.fuse(frame).magimg.shape)
"""


@pytest.mark.gpu
def test_when_the_device_is_lost_the_cpu_goes_on(folder):
    command = [sys.executable, "-c", LOST, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "lost: " in done.stdout, done.stderr
    assert "now eager on cpu (96, 128, 3)" in done.stdout, done.stderr
