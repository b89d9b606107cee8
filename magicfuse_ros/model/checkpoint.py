"""Weights folders: `config.json` and one safetensors file for each part.

Both are written atomically and read strictly: every tensor is used and none is missing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from magicfuse_ros.model.config import MagicFuseConfig
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.labels import LabelSet

CONFIG_FILE = "config.json"

PARTS = ("encoder", "decoder", "psi", "phi", "fusion")
"""The networks of the method: attribute names of `MagicFuse` and file names in a weights folder."""

REFINER = "refiner"
"""The network that a model may have beside them; see `model.refiner`."""


class CheckpointError(ValueError):
    """A weights folder that cannot be used; the message names the file or tensor and what to do."""


def read_config(folder: Path) -> MagicFuseConfig:
    """Read `config.json`.

    Raises
    ------
    CheckpointError
        The folder or the file is missing or malformed, or a value in it is not accepted.
    """
    if not folder.is_dir():
        advice = f"give a folder with {CONFIG_FILE} and safetensors files"
        if folder.name == "paper":  # documented, but too large to ship
            advice = (
                "the authors' weights do not ship; download their four files and run: magicfuse "
                "import-weights --ae ae.pth --ikr ikr.pth --ckg ckg.pth --mkf model.pth"
            )
        raise CheckpointError(f"there is no model folder {folder}; {advice}")
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"model folder {folder} has no {CONFIG_FILE}; it is not a model, or not a whole one"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}; check its permissions"
        ) from error
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise CheckpointError(
            f"{path} is not JSON ({error}); copy the model folder again"
        ) from error
    try:
        return MagicFuseConfig.from_dict(values)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_labels(folder: Path, config: MagicFuseConfig) -> LabelSet:
    """Read the label set that a folder's configuration names: a built-in one, or a file there.

    Raises
    ------
    LabelSetError
        The label set is unknown, or its file cannot be used.
    """
    own = config.labels.endswith((".yaml", ".yml"))
    return LabelSet.load(folder / config.labels if own else config.labels)


def write_config(folder: Path, config: MagicFuseConfig) -> None:
    """Write `config.json`, making the folder where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{CONFIG_FILE}.partial"
    partial.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / CONFIG_FILE)


def save_part(folder: Path, part: str, module: nn.Module) -> None:
    """Write one part's tensors to `<part>.safetensors`."""
    save_tensors(folder, part, module.state_dict())


def save_tensors(folder: Path, part: str, tensors: Mapping[str, Tensor]) -> None:
    """Write `<part>.safetensors`; a reader sees the old file or the new one, never a torn one."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{part}.safetensors.partial"
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial)
    partial.replace(part_path(folder, part))


def part_path(folder: Path, part: str) -> Path:
    """Return the path of a part's file in a weights folder."""
    return folder / f"{part}.safetensors"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU; `CheckpointError` when it is missing or corrupt."""
    with _as_checkpoint_error(path):
        return load_file(path)


@contextlib.contextmanager
def _as_checkpoint_error(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise CheckpointError(f"weights file {path} is missing; copy the model folder again")
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"weights file {path} is corrupt ({error}); copy the model folder again"
        ) from error


def load_part(folder: Path, part: str, module: nn.Module) -> None:
    """Put `<part>.safetensors` into `module` (which may be on the meta device).

    Raises
    ------
    CheckpointError
        The file is missing or corrupt, or `check_tensors` refuses a tensor.
    """
    path = part_path(folder, part)
    load_tensors(read_tensors(path), module, str(path))


def load_tensors(tensors: Mapping[str, Tensor], module: nn.Module, source: str) -> None:
    """Put `tensors` into `module` as float32; raises what `check_tensors` raises."""
    check_tensors(tensors, module, source)
    # Copied, because safetensors maps the file: a change to it would change a running model.
    copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    module.load_state_dict(copies, assign=True)


def check_tensors(tensors: Mapping[str, Tensor], module: nn.Module, source: str) -> None:
    """Check that `tensors` are exactly those of `module`.

    Raises
    ------
    CheckpointError
        A tensor is missing, unexpected, of another shape or not of real numbers. The message names
        the first such tensor, and `source` as where it came from.
    """
    expected = module.state_dict()
    for name, parameter in expected.items():
        if name not in tensors:
            raise CheckpointError(
                f"{source} lacks the tensor {name!r}; the weights do not belong to this config"
            )
        tensor = tensors[name]
        if tensor.shape != parameter.shape:
            raise CheckpointError(
                f"{source}: tensor {name!r} has shape {tuple(tensor.shape)}, the config makes "
                f"it {tuple(parameter.shape)}; the weights do not belong to this config"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{source}: tensor {name!r} is of {tensor.dtype}; accepted: floating point"
            )
    unexpected = sorted(set(tensors) - set(expected))
    if unexpected:
        raise CheckpointError(
            f"{source} has a tensor {unexpected[0]!r} that the config does not; "
            "they do not belong together"
        )
