"""A training checkpoint: weights, their average, the optimiser and the step, in one file.

The file is safetensors with metadata, written atomically.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from magicfuse_ros.messages import one_line
from magicfuse_ros.model.checkpoint import CheckpointError
from magicfuse_ros.whole_files import whole_file

# The running mean looks back over about this many steps, and is trusted after the second number.
_MEAN_OVER, _MEAN_AFTER = 100, 20
_TOO_HIGH = 10.0


def state_path(folder: Path, name: str) -> Path:
    """Return where the checkpoint of stage `name` lies in a run folder."""
    return folder / f"{name}.state.safetensors"


@dataclass
class TrainingState:
    """Where a stage stands."""

    step: int = 0  # optimiser steps done
    seconds: float = 0.0  # time that they took, of all runs
    loss: float = float("nan")  # mean over about the last 100 of them
    lowest: float = float("inf")  # the lowest that `loss` has been after the first steps
    high: int = 0  # how many steps in a row, up to now, had a loss of more than 10 times `lowest`

    def judge(self, loss: float) -> None:
        """Take note of the loss that the weights gave, before they are changed again."""
        self.high = self.high + 1 if loss > _TOO_HIGH * self.lowest else 0

    def record(self, loss: float) -> None:
        """Count the step that was taken on this loss."""
        self.step += 1
        if self.step == 1:
            self.loss = loss
        else:
            self.loss += (loss - self.loss) / min(self.step, _MEAN_OVER)
        if self.step >= _MEAN_AFTER:
            self.lowest = min(self.lowest, self.loss)


@dataclass(frozen=True)
class Checkpointed:
    """What a checkpoint holds besides the `TrainingState`."""

    trained: nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer


def write_state(path: Path, state: TrainingState, parts: Checkpointed) -> None:
    """Write all that resuming needs; a kill at any moment leaves the old file or the new one."""
    tensors = {f"trained/{key}": value for key, value in parts.trained.state_dict().items()}
    tensors |= {f"average/{key}": value for key, value in parts.average.state_dict().items()}
    for index, entries in parts.optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if value is not None:  # a momentum before its first step; all others are tensors
                tensors[f"optimizer/{index}/{key}"] = value
    metadata = {key: repr(value) for key, value in asdict(state).items()}
    plain = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    with whole_file(path) as partial:
        save_file(plain, partial, metadata)


def read_done(path: Path) -> tuple[int, float]:
    """Return how many steps a checkpoint holds, and their seconds; 0 where there is none.

    Raises
    ------
    CheckpointError
        The file is no checkpoint.
    """
    if not path.is_file():
        return 0, 0.0
    with _refusing(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        return int(metadata["step"]), float(metadata.get("seconds", 0.0))


def read_state(path: Path, parts: Checkpointed) -> TrainingState:
    """Put a checkpoint back into the networks and the optimiser.

    Raises
    ------
    CheckpointError
        The file is corrupt, or of another model or optimiser.
    """
    with _refusing(path):
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
            metadata = file.metadata()
        parts.trained.load_state_dict(_part(tensors, "trained/"))
        parts.average.load_state_dict(_part(tensors, "average/"))
        parts.optimizer.load_state_dict(
            {
                "state": _optimizer_entries(tensors),
                "param_groups": parts.optimizer.state_dict()["param_groups"],
            }
        )
        for parameter, entries in parts.optimizer.state.items():
            for key, value in entries.items():
                # A fused optimiser takes both to lie alike in memory, and does not look.
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    entries[key] = torch.empty_like(parameter).copy_(value)
        loss = float(metadata["loss"])
        lowest, seconds = float(metadata.get("lowest", loss)), float(metadata.get("seconds", 0.0))
        return TrainingState(int(metadata["step"]), seconds, loss, lowest)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Raise `CheckpointError` for whatever reading the checkpoint raises."""
    try:
        yield
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = one_line(error)
        raise CheckpointError(
            f"checkpoint {path} does not fit this stage ({reason[:300]}); remove it to start the "
            "stage again, or restore the config that it was made with"
        ) from error


def _optimizer_entries(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in _part(tensors, "optimizer/").items():
        index, name = key.split("/")
        entries.setdefault(int(index), {})[name] = value
    return entries


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
