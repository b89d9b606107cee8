"""A frame as one piece of work for a GPU, run on the CPU, gives what the CPU's own path gives."""

import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch
from support.device_frames import Double, assert_same, frame, ignore, make, save_telling
from support.small_models import SMALL_FEW_STEP, SMALL_REFINED
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.sampler import SamplerSettings
from magicfuse_ros.model.temporal import Memory
from magicfuse_ros.runtime import device_frames
from magicfuse_ros.runtime.backends.eager import EagerBackend
from magicfuse_ros.runtime.contract import EXTRAS, EngineError
from magicfuse_ros.runtime.letterbox import Letterbox
from magicfuse_ros.runtime.networks import CompiledNetworks
from magicfuse_ros.runtime.stopwatch import STAGES, Stopwatch

ALL = frozenset(EXTRAS)


@pytest.fixture(scope="module", params=["refined", "decoded"])
def folder(request, tmp_path_factory):
    config = SMALL_REFINED if request.param == "refined" else SMALL_FEW_STEP
    return save_telling(config, tmp_path_factory.mktemp("models"))


def changed(**settings):
    return {"steps": 0, "tau": None, "seed": None, "temporal": None} | settings


@pytest.mark.parametrize("size", [(96, 128), (48, 64), (150, 201)])
def test_frames_are_replayed_with_what_the_cpu_path_gives(folder, size):
    double, told = Double(), []
    plain, graphed = make(folder), make(folder, double, told)
    for seed in range(3):
        given = frame(seed, size)
        result = graphed.fuse(given, ALL)
        assert_same(result, plain.fuse(given, ALL))
        assert set(result.stage_ms) == set(STAGES)
        assert min(result.stage_ms[each] for each in ("encode", "decode", "postprocess")) > 0.0
    assert (double.captures, double.replays) == (1, 2 + 2)
    assert told == []


def test_every_way_of_asking_has_a_graph_and_few_are_kept(folder):
    double = Double()
    plain, graphed = make(folder), make(folder, double)
    frames, preparing = graphed._networks.last.frames, []
    frames._capture = lambda *given: preparing.append(graphed.preparing) or double(*given)
    captured = {}
    ways = [{"seed": 3}, {"steps": 3}, {"tau": 0.1}, {"temporal": 0.5}, {"tau": 0.2}]
    graphed.fuse(frame(0))
    for way in ways:
        for engine in (plain, graphed):
            engine.update(**changed(**way))
        assert_same(graphed.fuse(frame(0)), plain.fuse(frame(0)))
        captured[str(way)] = double.captures
    assert list(captured.values()) == [1, 2, 3, 4, 5]  # the seed's noise lies in the same place
    assert_same(graphed.fuse(frame(0), ALL), plain.fuse(frame(0), ALL))
    assert double.captures == 6
    assert preparing == [True] * 6  # it takes as long as several frames
    assert not graphed.preparing
    assert len(graphed._networks.last.frames._works) == device_frames.MOST_GRAPHS


def test_temporal_carries_over_inside_the_graph_as_it_does_outside(folder):
    double = Double()
    plain, graphed = make(folder, temporal=0.8), make(folder, double, temporal=0.8)
    for stream in range(2):
        for seed in range(4):
            given = frame(seed) if seed < 3 else 255 - frame(seed)  # another scene
            assert_same(graphed.fuse(given, ALL), plain.fuse(given, ALL))
        for engine in (plain, graphed):
            engine.forget()
        assert double.captures == 1, stream
    # Another way of asking goes on with the same stream; frames at weight 0 end it.
    for settings in (changed(temporal=0.8), changed(temporal=0.8, tau=0.1), changed(), {}):
        for engine in (plain, graphed):
            engine.update(**(settings or changed(temporal=0.8)))
        for seed in range(2):
            assert_same(graphed.fuse(frame(seed)), plain.fuse(frame(seed)))


@pytest.mark.parametrize("temporal", [None, 0.0, 0.8])
@pytest.mark.parametrize(
    ("double", "reason"),
    [
        (Double(fails=True), "operation not permitted when stream is capturing"),
        (Double(wrong=True), "of the CUDA graph of a frame differs from PyTorch by"),
    ],
    ids=["fails", "wrong"],
)
def test_a_graph_that_fails_or_gives_something_else_is_not_used(folder, double, reason, temporal):
    told, before = [], double.captures
    plain = make(folder, temporal=temporal)
    graphed = make(folder, double, told, temporal=temporal)
    for seed in range(3):
        assert_same(graphed.fuse(frame(seed)), plain.fuse(frame(seed)))
    assert double.captures == before + (2 if double.fails else 1)
    *_, text = told
    assert text.startswith("frames run without a CUDA graph: ")
    assert reason in text


def test_where_events_cannot_be_captured_the_graph_is_used_and_the_frame_timed_as_a_whole(folder):
    told, double = [], Double(no_events=True)
    plain, graphed = make(folder), make(folder, double, told)
    for seed in range(2):
        result = graphed.fuse(frame(seed))
        assert_same(result, plain.fuse(frame(seed)))
        assert [name for name, spent in result.stage_ms.items() if spent > 0.0] == ["fuse"]
    assert double.captures == 2
    (text,) = told
    assert text.startswith("the stages of a frame are not timed: operation not permitted")


class Calls(TorchFunctionMode):
    """Notes calls that make tensors of Python's numbers; PyTorch shows `OfTheCpu` none of them."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, arguments=(), named=None):
        if function.__name__ in {"tensor", "new_tensor", "as_tensor", "from_numpy"}:
            self.found.append(function.__name__)
        return function(*arguments, **(named or {}))


class OfTheCpu(TorchDispatchMode):
    """Notes every operation that reads or makes a tensor on the CPU."""

    def __init__(self):
        super().__init__()
        self.found, self.count = [], 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        self.count += 1
        tensors = pytree.tree_leaves((arguments, named, result))
        if "cpu" in {each.device.type for each in tensors if isinstance(each, torch.Tensor)}:
            self.found.append(str(function))
        return result


@pytest.mark.parametrize("temporal", [None, 0.0, 0.5])
def test_nothing_in_a_frame_looks_at_a_value_or_touches_the_cpu(folder, monkeypatch, temporal):
    """A capture allows neither. On `meta`, where tensors have no values, looking at one raises."""
    meta = torch.device("meta")
    monkeypatch.setattr(
        device_frames._Work,
        "_on_host",
        lambda _self, shape, dtype: torch.empty(tuple(shape), dtype=dtype, device=meta),
    )
    model = MagicFuse.from_pretrained(folder)
    refined = model.refiner is not None
    letterbox = Letterbox.fitting((150, 201), (64, 48), model.config.multiple_of)
    settings = SamplerSettings.of(model.config, model.labels.thermal_ids(), steps=2)
    with torch.inference_mode():
        networks = CompiledNetworks(
            model, EagerBackend(meta, 0), meta, letterbox.padded, ignore, "off", refined=refined
        )
        way = device_frames.Way(letterbox, ALL, settings, temporal)
        work = device_frames._Work(networks, way, meta, Memory())
        work.timed = False
        work.run()
        with OfTheCpu() as watch, Calls() as calls:
            work.run()
        assert watch.count > 1000
        assert (watch.found, calls.found) == ([], [])
        with watch, calls:  # they would see it
            networks.image.new_tensor([1.0])
            torch.ones(1).to(meta)
        assert calls.found == ["new_tensor"]
        assert watch.found != []


def test_frames_of_many_steps_have_no_graph_and_begin_anew_with_fewer(folder, monkeypatch):
    monkeypatch.setattr(device_frames, "MOST_STEPS", 3)
    double = Double()
    graphed, plain = make(folder, double, temporal=0.8), make(folder, temporal=0.8)
    for engine in (graphed, plain):
        engine.fuse(frame(1))  # what the stream goes on from
    networks = graphed._networks.last
    denoise, taken = networks.denoise, []

    def counted(*inputs):
        taken.append(inputs[-1])
        if len(taken) == 5:
            graphed.update(**changed(steps=3, temporal=0.8))
        return denoise(*inputs)

    networks.denoise = counted
    graphed.update(**changed(steps=900, temporal=0.8))
    plain.update(**changed(steps=3, temporal=0.8))
    assert_same(graphed.fuse(frame(0)), plain.fuse(frame(0)))
    assert double.captures == 2
    assert 900 not in {len(way.settings.timesteps) for way in networks.frames._works}


def test_values_that_are_not_finite_are_told_with_the_results_and_do_not_stay(folder):
    plain, graphed = make(folder, temporal=0.8), make(folder, Double(), temporal=0.8)
    graphed.fuse(frame(0))
    encoder = graphed._networks.last._encoder
    graphed._networks.last._encoder = lambda *inputs: encoder(*inputs) * torch.nan
    with pytest.raises(EngineError, match="eager on cpu gave values that are not finite"):
        graphed.fuse(frame(0))
    graphed._networks.last._encoder = encoder
    assert_same(graphed.fuse(frame(1)), plain.fuse(frame(1)))


def test_results_belong_to_the_caller(folder):
    graphed = make(folder, Double())
    result = graphed.fuse(frame(0), ALL)
    kept = dataclasses.asdict(result)
    graphed.fuse(frame(5), ALL)
    for name in ("magimg", "mask", "infrared", "enhanced"):
        assert np.array_equal(getattr(result, name), kept[name])


def test_networks_of_a_size_that_is_left_are_freed_at_once_with_their_graphs(folder):
    graphed = make(folder, Double())
    graphed.fuse(frame(0))
    gone = weakref.ref(graphed._networks.last)
    gc.disable()
    try:
        graphed.fuse(frame(0, (128, 96)))
        assert gone() is None
    finally:
        gc.enable()


class Event:
    """An event of CUDA's; the clock is the number of events."""

    recorded = 0

    def __init__(self, *, enable_timing, external):
        assert enable_timing
        assert external  # or a graph would not record it anew

    def record(self, stream):
        assert stream == "stream"
        Event.recorded += 1
        self.at = Event.recorded

    def elapsed_time(self, end):
        return float(end.at - self.at)


class Cuda:
    Event = Event

    @staticmethod
    def current_stream(device):
        assert device.type == "cuda"
        return "stream"


def test_on_cuda_stages_are_events_and_nothing_waits():
    watch = Stopwatch(torch.device("cuda", 0), cuda=Cuda)
    with watch.stage("fuse"), watch.stage("denoise"):  # events 1 and 2, at the end 3 and 4
        pass
    with watch.stage("decode"):  # 5 and 6
        pass
    assert watch.stage_ms() == dict.fromkeys(STAGES, 0.0) | {
        "fuse": 2.0,
        "denoise": 1.0,
        "decode": 1.0,
    }
    idle = Stopwatch(torch.device("cuda", 0), timed=False, cuda=Cuda)
    with idle.stage("fuse"):
        pass
    assert sum(idle.stage_ms().values()) == 0.0
