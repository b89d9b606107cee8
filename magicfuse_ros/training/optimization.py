"""How a stage is optimised: its schedule, its optimiser and the average of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from magicfuse_ros.model.config_values import ConfigError

# The share of the learning rate with which pretrained networks learn on: they know much already.
_PRETRAINED = 0.2


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How a stage is optimised.

    Attributes
    ----------
    steps, batch
        Optimiser steps in all, and samples a step in each process.
    learning_rate, optimizer, weight_decay, momentum
        As torch's optimisers take them; `momentum` is for `sgd`.
    warmup_steps
        Steps over which the learning rate rises from 0.
    decay
        `cosine` to 1 % over all steps, `halve` every `halve_every` steps, or `constant`.
    ema
        Decay of the exponential moving average of the weights; what is exported is the average.
        Step n uses at most (1 + n) / (10 + n), so that the first weights are soon forgotten.
    share
        Weight of this stage's part of the minutes of `train all --minutes`.
    precision
        `bfloat16` computes what loses nothing by it in 16 bits (autocast); weights stay 32 bits.
    compile
        On a GPU, compile the networks with torch.compile, so that many small kernels become few.
        It takes minutes before the first step, which the clock counts.
    checkpoint_minutes
        Minutes between checkpoints; by the clock at most one.
    sheet_every
        Steps between picture sheets; by the clock there is one with each checkpoint.
    seed
        With the step and the process's rank, the only source of randomness.
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
    share: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    checkpoint_minutes: float = 3.0
    sheet_every: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "sheet_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"loop.{name} is {getattr(self, name)}; accepted: 1 or more")
        for name in ("learning_rate", "share"):
            if not getattr(self, name) > 0.0:
                raise ConfigError(f"loop.{name} is {getattr(self, name)}; accepted: more than 0")
        for name in ("weight_decay", "warmup_steps", "checkpoint_minutes", "seed"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"loop.{name} is {getattr(self, name)}; accepted: 0 or more")
        for name in ("ema", "momentum"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"loop.{name} is {getattr(self, name)}; accepted: 0 to below 1")
        if self.decay == "halve" and self.halve_every < 1:
            raise ConfigError(
                f"loop.halve_every is {self.halve_every}; accepted where loop.decay is 'halve': "
                "1 or more"
            )

    def rate_at(self, step: int, passed: float | None = None) -> float:
        """Return the learning rate of optimiser step `step`, counted from 0.

        `passed` is the share of the stage's time that has passed, 0 to 1, where that ends it and
        not `steps`.
        """
        passed = step / self.steps if passed is None else passed
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.decay == "cosine":
            factor = 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, passed)))
        elif self.decay == "halve":
            factor = 0.5 ** (step // self.halve_every)
        else:
            factor = 1.0
        return self.learning_rate * warm * factor


def make_optimizer(
    config: LoopConfig, module: nn.Module, pretrained: Iterable[nn.Module] = ()
) -> torch.optim.Optimizer:
    """Build the optimiser of the module's trainable parameters.

    Those of the pretrained modules in it have a group of their own. A group's `share` says what
    part of the learning rate is its own.
    """
    slow = {id(each) for part in pretrained for each in part.parameters()}
    parameters = [each for each in module.parameters() if each.requires_grad]
    groups = [
        {"params": [each for each in parameters if (id(each) in slow) == is_slow], "share": share}
        for is_slow, share in ((False, 1.0), (True, _PRETRAINED))
    ]
    groups = [group for group in groups if group["params"]]
    rates: dict[str, Any] = {
        "lr": config.learning_rate,
        "weight_decay": config.weight_decay,
        "fused": True,
    }
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, **rates)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, **rates)


def make_average(config: LoopConfig, module: nn.Module) -> AveragedModel:
    """Build the exponential moving average of the module's weights and buffers."""

    def update(averages: Any, currents: Any, count: Any) -> None:
        steps = int(count)
        decay = min(config.ema, (1 + steps) / (10 + steps))
        get_ema_multi_avg_fn(decay)(averages, currents, count)  # type: ignore[no-untyped-call]

    return AveragedModel(module, multi_avg_fn=update, use_buffers=True)
