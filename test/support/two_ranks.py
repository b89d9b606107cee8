"""One process of several: `two_ranks.py FOLDER DATA CONFIG`; prints how each training ended.

Two of them fit a line, and only the second process has a reason to end: SIGTERM arrives, or the
loss is NaN, in its seventh step. The third is `magicfuse train psi`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from accelerate import PartialState
from safetensors import safe_open
from support.training_runs import LineStage, Points

from magicfuse_ros import cli
from magicfuse_ros.training.loop import LoopConfig, TrainingError, run


def to_nan(loss):
    return loss * float("nan")


def to_signal(loss):
    os.kill(os.getpid(), signal.SIGTERM)
    return loss


def report(name, rank, *facts):
    # In one write, so that the lines of the processes do not mix.
    print(" ".join(map(str, (name, rank, *facts))) + "\n", end="", flush=True)


def fit(name, folder, happens):
    processes = PartialState(cpu=True)
    rank = processes.process_index
    stage = LineStage({7: happens} if rank == 1 else {})
    config = LoopConfig(steps=12, batch=2, learning_rate=0.1, checkpoint_minutes=0.0)
    try:
        ending = "complete" if run(stage, Points(), config, folder, "line") else "stopped"
    except TrainingError:
        ending = "error"
    processes.wait_for_everyone()
    with safe_open(folder / "line.state.safetensors", "pt") as file:
        step = file.metadata()["step"]
    line = stage.trained["line"]
    report(name, rank, ending, stage.calls, step, line.a.item(), line.b.item())


def main(folder, data, config):
    fit("signal", folder / "signal", to_signal)
    fit("nan", folder / "nan", to_nan)
    status = cli.main(
        ["train", "psi", "--config", config, "--data", data, "--output", str(folder / "run")]
    )
    report("train", PartialState().process_index, status)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
