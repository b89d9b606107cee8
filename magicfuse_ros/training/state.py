"""A training checkpoint: weights, their average, the optimiser and the step, in one safetensors file written atomically."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


@dataclass
class TrainingState:
    """Where a stage stands: optimiser steps done, and the loss averaged over about the last 100 of them."""

    step: int = 0
    loss: float = float("nan")

    def record(self, loss: float) -> None:
        """Count one step."""
        self.step += 1
        self.loss = loss if self.step == 1 else self.loss + (loss - self.loss) / min(self.step, 100)


def write_state(
    path: Path, state: TrainingState, trained: nn.Module, average: AveragedModel, optimizer: torch.optim.Optimizer
) -> None:
    """Write everything that resuming needs; a kill at any moment leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"trained/{key}": value for key, value in trained.state_dict().items()}
    tensors |= {f"average/{key}": value for key, value in average.state_dict().items()}
    scalars: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                scalars[f"{index}/{key}"] = value
    metadata = {"step": str(state.step), "loss": repr(state.loss), "optimizer": json.dumps(scalars)}
    partial = path.with_suffix(".partial")
    save_file({key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}, partial, metadata)
    os.replace(partial, path)


def read_state(
    path: Path, trained: nn.Module, average: AveragedModel, optimizer: torch.optim.Optimizer
) -> TrainingState:
    """Put a checkpoint back into the modules and the optimiser; raises `ValueError` when it is corrupt or of another model."""
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata()
        trained.load_state_dict(_part(tensors, "trained/"))
        average.load_state_dict(_part(tensors, "average/"))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"checkpoint {path} does not fit this stage ({error}); remove it to start again, or restore the config it was made with"
        ) from error
    entries: dict[int, dict[str, Any]] = {}
    for key, value in _part(tensors, "optimizer/").items():
        index, name = key.split("/")
        entries.setdefault(int(index), {})[name] = value
    for key, scalar in json.loads(metadata["optimizer"]).items():
        index, name = key.split("/")
        entries.setdefault(int(index), {})[name] = scalar
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    return TrainingState(int(metadata["step"]), float(metadata["loss"]))


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
