"""Engines that go the GPU's way, on a GPU or on the CPU, and a double of CUDA graphs for that.

A GPU would run the captured work again on the memory that it was captured with. So does the double.
"""

from __future__ import annotations

import numpy as np
import torch

from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.runtime.device_frames import DeviceFrames
from magicfuse_ros.runtime.engine import EngineSettings, load_engine


def ignore(text):
    pass


def save_telling(config, folder):
    """Save random weights that tell classes and warm places apart, and return their folder."""
    torch.manual_seed(0)
    model = MagicFuse.from_config(config).eval()
    with torch.no_grad():
        model.fusion.segproj[-1].weight.mul_(60.0)
        if model.refiner is not None:
            model.refiner.head.outputs.weight.normal_(std=0.3)
    model.save_pretrained(folder / "model")
    return folder / "model"


class Double:
    """Captures by running once more, replays by running again into the same memory."""

    def __init__(self, *, fails=False, wrong=False, no_events=False):
        self.fails, self.wrong, self.no_events = fails, wrong, no_events
        self.captures = self.replays = 0

    def __call__(self, run, device):
        assert device.type == "cpu"
        self.captures += 1
        if self.fails or (self.no_events and run.__self__.timed):
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        for _ in range(2):  # warm-ups
            run()

        def replay():
            self.replays += 1
            run()
            if self.wrong:
                for each in run.__self__._made.values():
                    each.copy_(255 - each if each.dtype == torch.uint8 else each)

        return replay


def make(folder, double=None, told=None, **settings):
    """Make an engine: the CPU's own, or one that goes the GPU's way, captured by a double."""
    own = {"model": str(folder), "device": "cpu", "backend": "eager"}
    engine = load_engine(EngineSettings(**own | settings), ignore)
    engine.warm_up(ignore)
    if double is not None:
        tell = ignore if told is None else told.append
        networks = engine._networks.last
        networks.frames = DeviceFrames(networks, torch.device("cpu"), tell, double)
    return engine


def frame(seed, size=(96, 128)):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    made = np.stack([rows * 2, columns, (rows + columns)], -1) % 200
    made[size[0] // 3 : size[0] // 2, 20 + seed : 60 + seed] = (250, 240, 10)
    return (made + rng.integers(0, 6, made.shape)).astype(np.uint8)


def assert_same(ours, theirs):
    """One grey level, and a thousandth of the mask."""
    for name in ("magimg", "confidence", "infrared", "enhanced"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.shape == other.shape
            assert one.flags.c_contiguous
            assert one.flags.writeable
            most = 2 if name == "confidence" else 1  # as in test_tensor_pictures
            assert np.abs(one.astype(int) - other).max() <= most, name
    assert (ours.mask != theirs.mask).mean() <= 0.001, (ours.mask != theirs.mask).mean()
