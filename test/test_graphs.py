"""The sampling loop as a graph: what is captured, replayed and refused, on a double that replays.

A GPU would run the captured work again on the memory that it was captured with. So does the double.
"""

import dataclasses

import numpy as np
import pytest
import torch
from support.small_models import save_few_step

from magicfuse_ros.runtime.engine import EngineSettings, load_engine
from magicfuse_ros.runtime.graphs import LoopGraph

CPU = torch.device("cpu")


def ignore(text):
    pass


class Double:
    """Captures by running once, replays by running again into the same memory."""

    def __init__(self, *, fails=False, wrong=False):
        self.fails, self.wrong, self.captures, self.replays = fails, wrong, 0, 0

    def __call__(self, run, device):
        assert device == CPU
        self.captures += 1
        if self.fails:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        outcome = run()

        def replay():
            self.replays += 1
            for name, value in vars(run()).items():
                if isinstance(value, torch.Tensor):
                    getattr(outcome, name).copy_(-value if self.wrong else value)

        return outcome, replay


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_few_step(tmp_path_factory.mktemp("models"))


def make(folder, double=None, told=None):
    engine = load_engine(EngineSettings(model=str(folder), backend="eager"), ignore)
    engine.warm_up(ignore)
    if double is not None:
        tell = ignore if told is None else told.append
        engine._networks.last._graph = LoopGraph(CPU, tell, double)
    return engine


def frame(seed):
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def pictures(result):
    fields = dataclasses.asdict(result)
    return {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}


def same(one, other):
    one, other = pictures(one), pictures(other)
    assert one.keys() == other.keys()
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_frames_are_replayed_with_what_the_loop_would_give(folder):
    double = Double()
    plain, graphed = make(folder), make(folder, double)
    for seed in range(4):
        extras = frozenset({"infrared", "enhanced"})
        assert same(graphed.fuse(frame(seed), extras), plain.fuse(frame(seed), extras))
    assert double.captures == 1
    assert double.replays == 4 + 1  # one to see that it gives the same


def test_another_way_of_sampling_is_captured_anew_and_another_seed_is_not(folder):
    double = Double()
    plain, graphed = make(folder), make(folder, double)
    before = graphed.fuse(frame(0))
    captured = {}
    for changed in ({"seed": 3}, {"steps": 3}, {"tau": 0.1}, {"temporal": 0.5}):
        settings = {"steps": 0, "tau": None, "seed": None, "temporal": 0.0} | changed
        for engine in (plain, graphed):
            engine.update(**settings)
        result = graphed.fuse(frame(0))
        assert same(result, plain.fuse(frame(0)))
        captured[next(iter(changed))] = double.captures
        if "seed" in changed:
            assert not same(result, before)
    assert captured == {"seed": 1, "steps": 2, "tau": 3, "temporal": 4}


def test_a_result_stays_what_it_was_when_the_next_frame_comes(folder):
    engine = make(folder, Double())
    networks = engine._networks.last
    with torch.inference_mode():
        steps, kept = [], []
        for seed in range(2):
            condition = networks.encode(frame(seed), 0)
            steps.append(networks.sample(condition, 0, engine._sampling.in_force.settings))
            kept.append(steps[-1].z0_fused.clone())
    assert torch.equal(steps[0].z0_fused, kept[0])
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize(
    ("double", "reason"),
    [
        (Double(fails=True), "operation not permitted when stream is capturing"),
        (Double(wrong=True), "the CUDA graph of the sampling loop differs from PyTorch"),
    ],
)
def test_a_graph_that_fails_or_gives_something_else_is_not_used(folder, double, reason):
    told = []
    plain, graphed = make(folder), make(folder, double, told)
    for seed in range(3):
        assert same(graphed.fuse(frame(seed)), plain.fuse(frame(seed)))
    assert double.captures == 1
    assert len(told) == 1
    assert told[0].startswith(f"the sampling loop runs without a CUDA graph: {reason}")


def test_nothing_in_the_loop_waits_for_the_device_while_it_is_captured(folder):
    """What ends a stage would; so the frame's stopwatch is put away, and comes back."""
    engine = make(folder, Double())
    networks = engine._networks.last
    watch, inside = networks.watch, []
    fuse = networks.fuse

    def noted(*inputs):
        inside.append(networks.watch)
        return fuse(*inputs)

    networks.fuse = noted
    with torch.inference_mode():
        condition = networks.encode(frame(0), 0)
        networks.sample(condition, 0, engine._sampling.in_force.settings)
    assert inside
    assert all(each is not watch and each._device == CPU for each in inside)
    assert networks.watch is watch
