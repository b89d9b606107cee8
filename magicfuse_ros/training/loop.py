"""The training loop of every stage, on accelerate: one process, several GPUs or several machines.

A stage is a `Stage`: a module whose forward is the loss. The loop draws batch k from (seed, k) and
noise from (seed, k), so a resumed run sees the data and the noise that an uninterrupted one would
have; only weights, optimiser and averages are saved. The next batch is made while a GPU still works
on a step: the loop asks for it before it waits for the loss.

A checkpoint is written between the loss of a step and its update, so the weights in it have just
been seen to give a good loss: those of a diverging run never replace the last good ones.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from magicfuse_ros.training.optimization import LoopConfig, make_average, make_optimizer
from magicfuse_ros.training.progress import Progress
from magicfuse_ros.training.stage import Batch, Stage
from magicfuse_ros.training.state import (
    Checkpointed,
    TrainingState,
    read_state,
    state_path,
    write_state,
)

# Steps in a row with far too high a loss that make a divergence.
_DIVERGED = 50
# Norm to which a longer gradient is cut.
_LARGEST_GRADIENT = 1.0


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and where the last good checkpoint is."""


class Batches(Protocol):
    """Makes batches on the device that trains; see `Crops`."""

    def batch(self, first: int, count: int) -> Batch:
        """Make the samples from number `first` on, which depend on nothing else."""


class StopRequest:
    """Turns SIGTERM and SIGINT into a flag, so that the loop saves before it ends."""

    asked = False
    last: ClassVar[int] = signal.SIGINT
    """The signal that last stopped a loop of this process; SIGINT where another process was."""

    def __enter__(self) -> None:
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._previous = {number: signal.signal(number, self._ask) for number in numbers}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.asked = True
        StopRequest.last = number


class Export(Protocol):
    """Puts the averaged networks, by name, to use; `complete` when they have all their steps."""

    def __call__(self, trained: nn.ModuleDict, *, complete: bool) -> None:
        """Do so; only the main process calls it."""


def run(
    stage: Stage,
    data: Batches,
    config: LoopConfig,
    folder: Path,
    name: str,
    export: Export | None = None,
) -> bool:
    """Train `stage` to the end of `config.steps`.

    It resumes from `folder/<name>.state.safetensors` where that exists. On return the stage holds
    the averaged weights. With several processes each calls this with the same arguments.

    `export` is called in the main process when training ends, before the last checkpoint is
    written: one that has all its steps says that its weights were exported. It is not called when
    there was nothing left to train.

    Returns
    -------
    bool
        False when SIGTERM or SIGINT ended it early (a checkpoint was saved), True when it is
        complete.

    Raises
    ------
    TrainingError
        The loss became NaN or infinite, or diverged; the last good checkpoint is kept.
    CheckpointError
        The checkpoint to resume from is corrupt, or of another model or optimiser.
    """
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
    for module in (stage, *stage.frozen.values()):
        # mypy knows only the overloads of `to` without a memory format.
        module.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loop = _Loop(accelerator, stage, config, folder, name, export)
    if loop.state.step < config.steps:
        stop = StopRequest()
        with stop:
            loop.run(data, stop)
    stage.trained.load_state_dict(loop.parts.average.module.state_dict())
    return loop.state.step >= config.steps


class _Loop:
    """One stage, its optimiser and average, and the file they are kept in."""

    def __init__(
        self,
        accelerator: Accelerator,
        stage: Stage,
        config: LoopConfig,
        folder: Path,
        name: str,
        export: Export | None,
    ) -> None:
        self._accelerator, self._stage, self._config = accelerator, stage, config
        self._folder, self._name, self._export = folder, name, export
        self._path = state_path(folder, name)
        self.parts = Checkpointed(
            stage.trained, make_average(config, stage.trained), make_optimizer(config, stage)
        )
        self.state = read_state(self._path, self.parts) if self._path.is_file() else TrainingState()

    def run(self, data: Batches, stop: StopRequest) -> None:
        """Take every step that is left, or those until `stop` is asked for in any process."""
        config, state = self._config, self.state
        # DDP's forward averages the gradients; both come back with types that mypy cannot know.
        prepared: Any
        prepared, optimizer = self._accelerator.prepare(self._stage, self.parts.optimizer)
        progress = self._progress()
        saved_at = time.monotonic()
        try:
            batch = self._batch(data, state.step)
            while batch is not None:
                tensors, generator = batch, self._generator()
                loss, scalars = prepared(tensors, generator)
                if progress:
                    progress.trained()
                batch = self._batch(data, state.step + 1)
                if progress:
                    progress.received()
                value, stopping = self._agree(loss, stop)
                self._check(value)
                if stopping:
                    break
                overdue = time.monotonic() - saved_at > 60.0 * config.checkpoint_minutes
                if progress and overdue and state.high == 0:
                    progress.flush()
                    self._save()
                    saved_at = time.monotonic()
                self._update(loss, prepared, optimizer)
                state.record(value)
                if progress:
                    progress.stepped(state, scalars)
                    if state.step % config.sheet_every == 0:
                        with torch.no_grad():
                            progress.sheet(self._stage.sheet(tensors, generator), state.step)
        finally:
            if progress:
                progress.close()
        if progress:
            self._end()

    def _end(self) -> None:
        complete = self.state.step >= self._config.steps
        if self._export:
            self._export(cast("nn.ModuleDict", self.parts.average.module), complete=complete)
        if self.state.high == 0 or complete:
            self._save()

    def _progress(self) -> Progress | None:
        """Make the main process's progress; the other processes show and write nothing."""
        if not self._accelerator.is_main_process:
            return None
        samples = self._config.batch * self._accelerator.num_processes
        return Progress(self._folder, self._name, self.state.step, self._config.steps, samples)

    def _batch(self, data: Batches, step: int) -> Batch | None:
        """Make this process's batch of a step; None after the last."""
        if step >= self._config.steps:
            return None
        accelerator, count = self._accelerator, self._config.batch
        return data.batch(
            (step * accelerator.num_processes + accelerator.process_index) * count, count
        )

    def _generator(self) -> torch.Generator:
        seed = self._config.seed * 1_000_003 + self.state.step
        return torch.Generator().manual_seed(seed * 1_009 + self._accelerator.process_index)

    def _agree(self, loss: Tensor, stop: StopRequest) -> tuple[float, bool]:
        """Return the mean loss and whether to stop, the same in every process: none waits alone."""
        wanted = torch.full_like(loss.detach(), float(stop.asked))
        both = self._accelerator.reduce(torch.stack([loss.detach(), wanted]), "mean").tolist()
        return both[0], both[1] > 0.0

    def _check(self, loss: float) -> None:
        """Raise `TrainingError` unless training may go on from this loss."""
        if not abs(loss) < float("inf"):
            raise self._error(f"the loss is {loss}")
        self.state.judge(loss)
        if self.state.high >= _DIVERGED:
            raise self._error(
                f"the loss is {loss:.4g} and was more than 10 times its lowest mean, "
                f"{self.state.lowest:.4g}, for {_DIVERGED} steps"
            )

    def _update(self, loss: Tensor, prepared: Any, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self._config.rate_at(self.state.step)
        optimizer.zero_grad()
        self._accelerator.backward(loss)
        norm = self._accelerator.clip_grad_norm_(prepared.parameters(), _LARGEST_GRADIENT)
        if not bool(torch.isfinite(norm)):
            raise self._error(f"the gradient's norm is {float(norm)}")
        optimizer.step()
        self.parts.average.update_parameters(self._stage.trained)

    def _save(self) -> None:
        write_state(self._path, self.state, self.parts)

    def _error(self, what: str) -> TrainingError:
        kept = f"the last good checkpoint is kept in {self._path}"
        if not self._path.is_file():
            kept = "there is no checkpoint yet"
        return TrainingError(
            f"{self._name}: {what} at step {self.state.step}; {kept}. Lower loop.learning_rate and "
            "run the same command with --resume"
        )
