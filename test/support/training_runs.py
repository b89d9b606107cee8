"""Run folders, data and recipes small enough to train in a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from dataset_trees import TREES
from support.small_models import SMALL_FEW_STEP
from torch import nn

from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.training.stage import Stage

ROOT = Path(__file__).parents[2]
LOOP = {"steps": 4, "batch": 2, "learning_rate": 2e-3, "ema": 0.5}


def on_one_thread():
    """Let torch use one thread, for a fixture to yield from.

    Networks this small are slower on several, and processes that tests start have one as well:
    another number would round otherwise.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def data_folder(root):
    """Two datasets: one with infrared and boxes, one with labels."""
    for name in ("msrs", "camvid"):
        TREES[name](root / name)
    return root


def run_folder(folder, config=SMALL_FEW_STEP):
    """A run folder whose model is small; `train` goes on from it whatever the recipe's size."""
    torch.manual_seed(1)
    MagicFuse.from_config(config).save_pretrained(folder / "model")
    return folder


def write_recipe(folder, stage, *, loop=None, **sections):
    """Write `<stage>.yaml`; returns its path."""
    content = {"stage": stage, "size": "tiny", "loop": LOOP | (loop or {}), "data": {"crop": 32}}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stage}.yaml"
    path.write_text(yaml.safe_dump(content | sections))
    return path


def start(*command, **options):
    """Start a Python process of one thread, in a session of its own, in the checkout."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'test'}"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        **options,
    )


class Line(nn.Module):
    """y = a x + b."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.a * x + self.b


class LineStage(Stage):
    """Learns y = 3 x - 1, seen through noise; `at` maps a number of calls to what happens then.

    What happens takes the loss and returns another.
    """

    def __init__(self, at=None):
        super().__init__({"line": Line()}, {"helper": nn.Linear(2, 2)})
        self.at = at or {}
        self.calls = 0

    def forward(self, batch, generator):
        noise = 0.1 * torch.randn(batch["x"].shape, generator=generator)
        target = 3.0 * batch["x"] - 1.0 + noise
        loss = ((self.trained["line"](batch["x"]) - target) ** 2).mean()
        self.calls += 1
        loss = self.at.get(self.calls, lambda loss: loss)(loss)
        return loss, {"slope": self.trained["line"].a.detach()}

    def sheet(self, _batch, _generator):
        return torch.zeros(3, 4, 4)


class Points:
    """Batches of x, each drawn by the number of its first sample alone; keeps what was asked."""

    def __init__(self):
        self.asked = []

    def batch(self, first, count):
        self.asked.append((first, count))
        return {"x": torch.rand(count, generator=torch.Generator().manual_seed(first))}
