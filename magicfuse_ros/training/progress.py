"""What a training run shows: a progress bar, TensorBoard scalars and picture sheets."""

from __future__ import annotations

import time
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from magicfuse_ros.training.state import TrainingState

LOG_EVERY = 20
"""Steps between scalars."""


class Progress:
    """Progress of one stage, shown by the main process; the other processes have none.

    Scalars go to `folder/logs/<name>`: `loss`, what the stage logs, `data/samples_per_second` of
    all processes, and `data/share_waiting`, the share of time that training waited for data.

    Parameters
    ----------
    start, total
        Steps done so far, and steps in all. What an earlier run logged after `start` is purged:
        those steps are taken again.
    samples
        Samples a step, of all processes.
    """

    def __init__(self, folder: Path, name: str, start: int, total: int, samples: int) -> None:
        self._writer = SummaryWriter(str(folder / "logs" / name), purge_step=start + 1)
        self._bar = tqdm(
            total=total, initial=start, desc=name, unit="step", mininterval=5.0, smoothing=0.05
        )
        self._samples = samples
        self._steps = 0
        self._waited = self._worked = 0.0
        self._mark = time.monotonic()

    def received(self) -> None:
        """Note that the next batch was made, or that a GPU was told to make it."""
        now = time.monotonic()
        self._waited += now - self._mark
        self._mark = now

    def trained(self) -> None:
        """Note that a batch was trained on but for the update, or that a GPU was told to."""
        now = time.monotonic()
        self._worked += now - self._mark
        self._mark = now

    def stepped(self, state: TrainingState, scalars: dict[str, Tensor]) -> None:
        """Note that the step was taken, and log every `LOG_EVERY` steps."""
        self.trained()
        self._steps += 1
        self._bar.update(1)
        if state.step % LOG_EVERY == 0:
            seconds = self._waited + self._worked
            waiting = self._waited / seconds
            rate = self._steps * self._samples / seconds
            values = {"loss": state.loss, "data/share_waiting": waiting}
            values |= {"data/samples_per_second": rate}
            values |= {key: float(value) for key, value in scalars.items()}
            for key, value in values.items():
                self._writer.add_scalar(key, value, state.step)
            self._bar.set_postfix(loss=f"{state.loss:.4f}", wait=f"{waiting:.0%}", refresh=False)
            self._steps = 0
            self._waited = self._worked = 0.0

    def sheet(self, picture: Tensor, step: int) -> None:
        """Log a picture (3, H, W) in [0, 1]."""
        self._writer.add_image("sheet", picture, step)

    def flush(self) -> None:
        """Write out what was logged, so that a checkpoint never runs ahead of the curves."""
        self._writer.flush()

    def close(self) -> None:
        """End the bar and the log."""
        self._bar.close()
        self._writer.close()
