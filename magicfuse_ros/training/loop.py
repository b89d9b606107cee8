"""The training loop of every stage, on accelerate: one process, several GPUs or several machines by the same command.

A stage is a `Stage`: a module whose forward is the loss. The loop draws batch k from (seed, k) and noise from (seed, k), so a
resumed run sees the data and the noise that an uninterrupted one would have; only weights, optimiser and averages are saved.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import cv2
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from magicfuse_ros.training.state import TrainingState, read_state, write_state

Batch = dict[str, Tensor]


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and where the last good checkpoint is."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How a stage is optimised.

    Attributes
    ----------
    steps, batch
        Optimiser steps in all, and samples a step in each process.
    warmup_steps
        Steps over which the learning rate rises from 0.
    decay
        `cosine` to 1 % over all steps, `halve` every `halve_every` steps, or `constant`.
    ema
        Decay of the exponential moving average of the weights; what is exported is the average.
    gradient_clip
        Largest norm of the gradient.
    checkpoint_minutes
        Minutes between checkpoints.
    mixed_precision
        `no`, `fp16` or `bf16`, as accelerate takes it.
    """

    steps: int
    batch: int
    learning_rate: float
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = 0.0
    momentum: float = 0.9
    warmup_steps: int = 0
    decay: Literal["cosine", "halve", "constant"] = "constant"
    halve_every: int = 0
    ema: float = 0.999
    gradient_clip: float = 1.0
    checkpoint_minutes: float = 3.0
    sheet_every: int = 1000
    workers: int = 1
    seed: int = 0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "sheet_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"loop.{name} is {getattr(self, name)}; accepted: 1 or more")
        if not self.learning_rate > 0.0:
            raise ValueError(f"loop.learning_rate is {self.learning_rate}; accepted: more than 0")
        if not 0.0 <= self.ema < 1.0:
            raise ValueError(f"loop.ema is {self.ema}; accepted: 0 to below 1")
        if self.decay == "halve" and self.halve_every < 1:
            raise ValueError("loop.halve_every must be 1 or more where loop.decay is 'halve'")

    def rate_at(self, step: int) -> float:
        """Learning rate of optimiser step `step` (from 0)."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.decay == "cosine":
            factor = 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / self.steps)))
        elif self.decay == "halve":
            factor = 0.5 ** (step // self.halve_every)
        else:
            factor = 1.0
        return self.learning_rate * warm * factor


class Stage(nn.Module):
    """What a stage trains: registered submodules are trained; frozen networks are kept in `frozen`, out of sight of DDP."""

    def __init__(self, trained: dict[str, nn.Module], frozen: dict[str, nn.Module]) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(trained)
        self.__dict__["frozen"] = frozen
        for module in frozen.values():
            module.requires_grad_(requires_grad=False).eval()

    frozen: dict[str, nn.Module]

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch (a scalar), and scalars to log. Noise comes from `generator` alone."""
        raise NotImplementedError

    def sheet(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """A picture (3, H, W) in [0, 1] of what the stage does with a batch."""
        raise NotImplementedError


class _StepSampler(Sampler[list[int]]):
    """Indices of the batches from `start` on, for one process of several; the dataset maps an index to a seeded sample."""

    def __init__(self, start: int, config: LoopConfig, rank: int, world: int) -> None:
        self._steps = range(start, config.steps)
        self._batch, self._rank, self._world = config.batch, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            first = (step * self._world + self._rank) * self._batch
            yield list(range(first, first + self._batch))

    def __len__(self) -> int:
        return len(self._steps)


def _optimizer(config: LoopConfig, module: nn.Module) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, config.learning_rate, weight_decay=config.weight_decay)


class _StopRequest:
    """Turns SIGTERM and SIGINT into a flag, so that the loop saves before it ends."""

    def __init__(self) -> None:
        self.asked = False
        self._previous = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def run(stage: Stage, dataset: Dataset[Batch], config: LoopConfig, folder: Path, name: str) -> bool:
    """Train `stage` to the end of `config.steps`, resuming from `folder/<name>.state.safetensors` where it exists.

    On return the stage holds the averaged weights. Returns False when SIGTERM or SIGINT ended it early (a checkpoint was
    saved), True when it is complete.

    Raises
    ------
    TrainingError
        The loss became NaN or infinite; the last good checkpoint is kept.
    """
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=not torch.cuda.is_available())
    state_path = folder / f"{name}.state.safetensors"
    stage = stage.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in stage.frozen.values():
        module.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(config, stage)
    average = AveragedModel(stage.trained, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
    state = read_state(state_path, stage.trained, average, optimizer) if state_path.is_file() else TrainingState()
    if state.step < config.steps:
        stop = _StopRequest()
        try:
            _steps(accelerator, stage, average, optimizer, dataset, config, folder, name, state, stop)
        finally:
            stop.restore()
        if accelerator.is_main_process:
            write_state(state_path, state, stage.trained, average, optimizer)
    stage.trained.load_state_dict(average.module.state_dict())
    return state.step >= config.steps


def _steps(
    accelerator: Accelerator,
    stage: Stage,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    dataset: Dataset[Batch],
    config: LoopConfig,
    folder: Path,
    name: str,
    state: TrainingState,
    stop: _StopRequest,
) -> None:
    # OpenCV's thread pool does not survive the fork of a data worker: end it here, where its threads still live.
    cv2.setNumThreads(0)
    sampler = _StepSampler(state.step, config, accelerator.process_index, accelerator.num_processes)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=config.workers,
        prefetch_factor=4 if config.workers else None,
        worker_init_fn=_one_thread,
    )
    prepared: Any
    prepared, prepared_optimizer = accelerator.prepare(stage, optimizer)
    main = accelerator.is_main_process
    writer = SummaryWriter(str(folder / "logs" / name), purge_step=state.step) if main else None
    progress = tqdm(
        total=config.steps, initial=state.step, desc=name, unit="step", disable=not main, mininterval=5.0, smoothing=0.05
    )
    saved_at = mark = time.monotonic()
    waited = busy = 0.0
    for batch in loader:
        received = time.monotonic()
        waited += received - mark
        tensors = {key: value.to(accelerator.device) for key, value in batch.items()}
        generator = torch.Generator().manual_seed(_noise_seed(config.seed, state.step, accelerator.process_index))
        for group in prepared_optimizer.param_groups:
            group["lr"] = config.rate_at(state.step)
        with accelerator.autocast():
            loss, scalars = prepared(tensors, generator)
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"{name}: the loss is {loss.item()} at step {state.step}; the last good checkpoint is kept in {folder}. "
                "Lower loop.learning_rate and run the same command again"
            )
        prepared_optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared.parameters(), config.gradient_clip)
        prepared_optimizer.step()
        average.update_parameters(stage.trained)
        state.record(float(loss.detach()))
        mark = time.monotonic()
        busy += mark - received
        progress.update(1)
        if writer is not None and state.step % 20 == 0:
            seconds = waited + busy
            writer.add_scalar("loss", state.loss, state.step)
            writer.add_scalar("data/samples_per_second", 20 * config.batch / seconds, state.step)
            writer.add_scalar("data/share_waiting", waited / seconds, state.step)
            for key, value in scalars.items():
                writer.add_scalar(key, float(value), state.step)
            progress.set_postfix(loss=f"{state.loss:.4f}", wait=f"{waited / seconds:.0%}", refresh=False)
            waited = busy = 0.0
        if writer is not None and state.step % config.sheet_every == 0:
            with torch.no_grad():
                writer.add_image("sheet", stage.sheet(tensors, generator), state.step)
        if main and time.monotonic() - saved_at > 60.0 * config.checkpoint_minutes:
            write_state(folder / f"{name}.state.safetensors", state, stage.trained, average, optimizer)
            saved_at = time.monotonic()
        if stop.asked:
            break
        mark = time.monotonic()
    progress.close()
    if writer is not None:
        writer.close()


def _one_thread(_worker: int) -> None:
    # Several threads in a data worker would fight the training step for the same cores.
    torch.set_num_threads(1)


def _noise_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 1_009 + rank
