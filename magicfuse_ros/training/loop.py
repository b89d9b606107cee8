"""The training loop of every stage, on accelerate: one process, several GPUs or several machines.

A stage is a `Stage`: a module whose forward is the loss. The loop draws batch k from (seed, k) and
noise from (seed, k), so a resumed run sees the data and the noise that an uninterrupted one would
have; only weights, optimiser and averages are saved. The next batch is made while a GPU still works
on a step: the loop asks for it before it waits for the loss.

A checkpoint is written between the loss of a step and its update, so the weights in it have just
been seen to give a good loss: those of a diverging run never replace the last good ones.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Protocol, TypeAlias, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from magicfuse_ros.messages import one_line
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

_now = time.monotonic


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


Export: TypeAlias = Callable[[nn.ModuleDict], None]
"""Puts the averaged networks, by name, to use; only the main process calls it."""


def run(
    stage: Stage,
    data: Batches,
    config: LoopConfig,
    folder: Path,
    name: str,
    export: Export | None = None,
    *,
    minutes: float | None = None,
) -> bool:
    """Train `stage` to the end of `config.steps`, or for so many minutes.

    It resumes from `folder/<name>.state.safetensors` where that exists; its minutes are counted
    too. On return the stage holds the averaged weights. With several processes each calls this with
    the same arguments.

    `export` is called before each checkpoint is written: one that has all its steps says that its
    weights were exported. It is not called when there was nothing left to train.

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
    loop = _Loop(accelerator, stage, config, folder, name, export, minutes)
    if not loop.complete:
        stop = StopRequest()
        with stop:
            loop.run(data, stop)
    stage.trained.load_state_dict(loop.parts.average.module.state_dict())
    return loop.complete


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
        minutes: float | None,
    ) -> None:
        self._accelerator, self._stage, self._config = accelerator, stage, config
        self._folder, self._name, self._export = folder, name, export
        self._seconds = None if minutes is None else 60.0 * minutes
        self._path = state_path(folder, name)
        self.parts = Checkpointed(
            stage.trained,
            make_average(config, stage.trained),
            make_optimizer(config, stage, stage.pretrained),
        )
        self.state = read_state(self._path, self.parts) if self._path.is_file() else TrainingState()

    @property
    def complete(self) -> bool:
        """Whether all the steps, or all the minutes, have been taken."""
        if self._seconds is None:
            return self.state.step >= self._config.steps
        return self.state.seconds >= self._seconds

    def run(self, data: Batches, stop: StopRequest) -> None:
        """Take every step that is left, or those until `stop` is asked for in any process."""
        # DDP's forward averages the gradients; both come back with types that mypy cannot know.
        prepared: Any
        prepared, optimizer = self._accelerator.prepare(self._stage, self.parts.optimizer)
        before, started = self.state.seconds, _now()
        batch = self._batch(data, self.state.step)
        if self._config.compile and self._accelerator.device.type == "cuda":
            self._compile(prepared, batch)
        progress, saved_at = self._progress(), _now()
        try:
            while not self.complete:
                tensors, generator = batch, self._generator()
                optimizer.zero_grad()
                loss, scalars = self._forward(prepared, tensors, generator)
                self._accelerator.backward(loss)
                norm = self._accelerator.clip_grad_norm_(prepared.parameters(), _LARGEST_GRADIENT)
                progress.trained()
                batch = self._batch(data, self.state.step + 1)
                progress.received()
                seconds = before + _now() - started
                value, gradient, stopping, seconds = self._agree(loss, norm, stop, seconds)
                self._check(value)
                if stopping:
                    break
                if _now() - saved_at > self._between and self.state.high == 0:
                    self._checkpoint(progress, tensors, generator)
                    saved_at = _now()
                if not math.isfinite(gradient):
                    raise self._error(f"the gradient's norm is {gradient}")
                self._update(optimizer)
                self.state.record(value)
                self.state.seconds = seconds
                progress.stepped(self.state, scalars)
                if self.state.step % self._config.sheet_every == 0 and not self._seconds:
                    self._draw(progress, tensors, generator)
            if self.state.high == 0 or self.complete:
                self._checkpoint(progress, tensors, generator)
        finally:
            progress.close()

    def _forward(
        self, prepared: Any, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        half = self._config.precision == "bfloat16"
        device = self._accelerator.device.type
        # Accelerate's own can be set only once in a process, and stages may differ. Without the
        # cache: F's weights in 16 bits from an earlier step, without a gradient, would serve the
        # last one too.
        with torch.autocast(device, torch.bfloat16, enabled=half, cache_enabled=False):
            loss, scalars = prepared(batch, generator)
        return loss.float(), scalars

    def _update(self, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * self._config.rate_at(self.state.step, self._passed)
        optimizer.step()
        self.parts.average.update_parameters(self._stage.trained)

    @property
    def _between(self) -> float:
        """Seconds from one checkpoint to the next."""
        return 60.0 * min(self._config.checkpoint_minutes, 1.0 if self._seconds else math.inf)

    def _checkpoint(self, progress: Progress, batch: Batch, generator: torch.Generator) -> None:
        if self._accelerator.is_main_process:
            progress.flush()
            if self._export:
                self._export(cast("nn.ModuleDict", self.parts.average.module))
            write_state(self._path, self.state, self.parts)
        if self._passed is not None:
            self._draw(progress, batch, generator)
            if self._accelerator.is_main_process:
                progress.tell(self.state, self._passed)

    @property
    def _passed(self) -> float | None:
        """The share of its minutes that the stage has had; None where steps end it."""
        return None if self._seconds is None else self.state.seconds / self._seconds

    def _draw(self, progress: Progress, batch: Batch, generator: torch.Generator) -> None:
        if self._accelerator.is_main_process:
            # A sheet has other sizes, for which nothing is worth compiling.
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                progress.sheet(self._stage.sheet(batch, generator), self.state.step)

    def _compile(self, prepared: Any, batch: Batch) -> None:
        """Compile the networks, try a step, and go on without where that fails."""
        networks = [*self._stage.trained.values(), *self._stage.frozen.values()]
        try:
            for network in networks:
                network.compile()
            self._accelerator.backward(self._forward(prepared, batch, self._generator())[0])
        except Exception as error:  # noqa: BLE001 - compilers fail in many ways
            for network in networks:
                network._compiled_call_impl = None  # noqa: SLF001 - torch has no other way back
            self._accelerator.print(
                f"{self._name}: trains without torch.compile, which failed: {one_line(error)[:300]}"
            )

    def _progress(self) -> Progress:
        samples = self._config.batch * self._accelerator.num_processes
        total = None if self._seconds else self._config.steps
        shown = self._accelerator.is_main_process
        return Progress(self._folder, self._name, self.state.step, total, samples, shown=shown)

    def _batch(self, data: Batches, step: int) -> Batch:
        """Make this process's batch of a step; the one after the last is made for nothing."""
        accelerator, count = self._accelerator, self._config.batch
        place = step * accelerator.num_processes + accelerator.process_index
        return data.batch(place * count, count)

    def _generator(self) -> torch.Generator:
        seed = self._config.seed * 1_000_003 + self.state.step
        generator = torch.Generator(self._accelerator.device)
        return generator.manual_seed(seed * 1_009 + self._accelerator.process_index)

    def _agree(
        self, loss: Tensor, norm: Tensor, stop: StopRequest, seconds: float
    ) -> tuple[float, float, bool, float]:
        """Return mean loss, gradient's norm, whether to stop, and seconds, as every process does.

        It is the one wait for the GPU in a step.
        """
        told = loss.new_tensor([float(stop.asked), seconds], dtype=torch.float64)
        mine = torch.cat([torch.stack([loss.detach(), norm]).double(), told])
        value, gradient, wanted, passed = self._accelerator.reduce(mine, "mean").tolist()
        return value, gradient, wanted > 0.0, passed

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

    def _error(self, what: str) -> TrainingError:
        kept = f"the last good checkpoint is kept in {self._path}"
        if not self._path.is_file():
            kept = "there is no checkpoint yet"
        return TrainingError(
            f"{self._name}: {what} at step {self.state.step}; {kept}. Lower loop.learning_rate and "
            "run the same command with --resume"
        )
