"""What a training run shows: a progress bar, TensorBoard scalars and picture sheets."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from magicfuse_ros.training.sheets import write_sheet
from magicfuse_ros.training.state import TrainingState

LOG_EVERY = 20
"""Steps between scalars."""


class Progress:
    """Progress of one stage, shown by the main process alone.

    Scalars go to `folder/logs/<name>`: `loss`, what the stage logs, `data/samples_per_second` of
    all processes, and `data/share_waiting`, the share of time that training waited for data.

    Parameters
    ----------
    start, total
        Steps done so far, and steps in all; None where the clock ends them. What an earlier run
        logged after `start` is purged: those steps are taken again.
    samples
        Samples a step, of all processes.
    shown
        Whether anything is shown or written.
    """

    def __init__(
        self, folder: Path, name: str, start: int, total: int | None, samples: int, *, shown: bool
    ) -> None:
        self._writer = None
        if shown:
            self._writer = SummaryWriter(str(folder / "logs" / name), purge_step=start + 1)
        self._bar = tqdm(
            total=total, initial=start, desc=name, unit="step", mininterval=5.0, smoothing=0.05,
            disable=not shown,
        )  # fmt: skip
        self._samples = samples
        self._name, self._sheet = name, folder / "sheets" / f"{name}.jpg"
        self._measured: tuple[float, float] | None = None
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
        if self._writer and state.step % LOG_EVERY == 0:
            rate, waiting = self._measure()
            values = {"loss": state.loss, "data/share_waiting": waiting}
            values |= {"data/samples_per_second": rate}
            values |= {key: float(value) for key, value in scalars.items()}
            for key, value in values.items():
                self._writer.add_scalar(key, value, state.step)
            self._bar.set_postfix(loss=f"{state.loss:.4f}", wait=f"{waiting:.0%}", refresh=False)

    def _measure(self) -> tuple[float, float]:
        """Return samples a second, and the share of waiting, since this was last asked."""
        seconds = self._waited + self._worked
        measured = self._steps * self._samples / seconds, self._waited / seconds
        self._steps = 0
        self._waited = self._worked = 0.0
        self._measured = measured
        return measured

    def sheet(self, picture: Tensor, step: int) -> None:
        """Log a picture (3, H, W) in [0, 1], and write it to `folder/sheets/<name>.jpg`."""
        if self._writer:
            self._writer.add_image("sheet", picture, step)
        rgb = (picture.clamp(0.0, 1.0) * 255.0).round().byte().permute(1, 2, 0).cpu().numpy()
        self._sheet.parent.mkdir(exist_ok=True)
        write_sheet(self._sheet, np.ascontiguousarray(rgb))

    def tell(self, state: TrainingState, passed: float) -> None:
        """Print where the stage stands, with the speed and the waiting that were last logged."""
        rate, waiting = self._measured or self._measure()
        tqdm.write(
            f"{self._name}: {passed:.0%} of its time, step {state.step}, loss {state.loss:.4f}, "
            f"{rate:.0f} samples/s, {waiting:.0%} of the time on making batches"
        )

    def flush(self) -> None:
        """Write out what was logged, so that a checkpoint never runs ahead of the curves."""
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """End the bar and the log."""
        self._bar.close()
        if self._writer:
            self._writer.close()
