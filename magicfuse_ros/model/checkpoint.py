"""Weights folders: `config.json` and one safetensors file for each part, or shards of all of them.

Both are written atomically and read strictly: every tensor is used and none is missing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from magicfuse_ros.model.config import MagicFuseConfig
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.whole_files import whole_file, write_whole

CONFIG_FILE = "config.json"

SHARDS_FILE = "shards.json"
SHARD_BYTES = 15_000_000
"""The largest that a file of `save_shards` is."""
_SHARD_HEADER = 200_000  # room for the names and shapes of tensors

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
        if folder.name == "base":
            advice = (
                "nobody has trained it yet; do so on a GPU, and use its folder RUN/model: magicfuse"
                " train all --size base --minutes 12 --data DATA --output RUN"
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
    _write_json(folder / CONFIG_FILE, config.to_dict())


def save_part(folder: Path, part: str, module: nn.Module) -> None:
    """Write one part's tensors to `<part>.safetensors`."""
    save_tensors(folder, part, module.state_dict())


def save_tensors(folder: Path, part: str, tensors: Mapping[str, Tensor]) -> None:
    """Write `<part>.safetensors`; a reader sees the old file or the new one, never a torn one."""
    with whole_file(part_path(folder, part)) as partial:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial)
    if _shards_of(folder, part):  # from now on it has a file of its own
        index = json.loads((folder / SHARDS_FILE).read_text(encoding="utf-8"))
        parts = [name for name in index["parts"] if name != part]
        _write_json(folder / SHARDS_FILE, {**index, "parts": parts})


def save_shards(folder: Path, parts: Mapping[str, nn.Module]) -> None:
    """Write whole parts in 16 bits, in files of at most `SHARD_BYTES`, in the place of others.

    `SHARDS_FILE` names them, and is replaced at once: a reader sees the old set or the new one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for part, module in parts.items():
        for name, tensor in module.state_dict().items():
            half = tensor.detach().to("cpu", torch.float16).contiguous()
            if shards[-1] and size + half.nbytes > SHARD_BYTES - _SHARD_HEADER:
                shards.append({})
                size = 0
            shards[-1][f"{part}/{name}"] = half
            size += half.nbytes
    chosen = uuid.uuid4().hex[:8]
    names = [f"weights-{chosen}-{k}.safetensors" for k in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name)
    _write_json(folder / SHARDS_FILE, {"parts": sorted(parts), "shards": names})
    stale = [path for path in folder.glob("weights-*.safetensors") if path.name not in names]
    for path in (*stale, *(part_path(folder, part) for part in parts)):
        path.unlink(missing_ok=True)


def _shards_of(folder: Path, part: str) -> list[Path]:
    """List the shards to look for a part in; none where it has a file of its own."""
    path = folder / SHARDS_FILE
    if not path.is_file():
        return []
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return (
            [folder / Path(name).name for name in index["shards"]] if part in index["parts"] else []
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be used ({error}); copy the model folder again"
        ) from error


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    write_whole(path, json.dumps(values, indent=2) + "\n")


def part_path(folder: Path, part: str) -> Path:
    """Return the path of a part's file in a weights folder."""
    return folder / f"{part}.safetensors"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU; `CheckpointError` when it is missing or corrupt."""
    if not path.is_file():
        raise CheckpointError(f"weights file {path} is missing; copy the model folder again")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"weights file {path} is corrupt ({error}); copy the model folder again"
        ) from error


def load_part(folder: Path, part: str, module: nn.Module) -> None:
    """Put a part's tensors into `module` (which may be on the meta device).

    They are in `<part>.safetensors`, or in the shards that `save_shards` wrote.

    Raises
    ------
    CheckpointError
        The file is missing or corrupt, or `load_tensors` refuses a tensor.
    """
    shards = _shards_of(folder, part)
    if not shards:
        path = part_path(folder, part)
        load_tensors(read_tensors(path), module, str(path))
        return
    own = f"{part}/"
    tensors = {
        name.removeprefix(own): tensor
        for path in shards
        for name, tensor in read_tensors(path).items()
        if name.startswith(own)
    }
    load_tensors(tensors, module, f"{part} in {folder / SHARDS_FILE}")


def load_tensors(tensors: Mapping[str, Tensor], module: nn.Module, source: str) -> None:
    """Put `tensors`, which must be exactly those of `module`, into it as float32.

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
    # Copied, because safetensors maps the file: a change to it would change a running model.
    copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    module.load_state_dict(copies, assign=True)
