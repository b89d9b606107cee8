"""Importer of the authors' released weights (four `.pth` files) into a weights folder.

Every tensor of the release is used and none is missing; names and shapes are checked against the
configuration. Files are loaded with `weights_only=True`, so that they cannot run code.

The names are those of the files' tensors. No test shows yet that the imported model computes what
the authors' own code computes.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from magicfuse_ros.model import checkpoint
from magicfuse_ros.model.checkpoint import PARTS, CheckpointError
from magicfuse_ros.model.config import DenoiserConfig, MagicFuseConfig
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.sizes import PAPER

Progress = Callable[[str], None]
Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
"""Patterns in our names of tensors, and what the release has there, replaced one after another."""

_AUTOENCODER: Rules = (
    (r"^merge_noise", "noiseconv"),
    (r"^downs\.(\d+)", lambda found: f"downsample{int(found[1]) + 1}"),
    (r"^ups\.(\d+)\.0", lambda found: f"upsample{int(found[1]) + 1}.1"),
    (r"^levels\.(\d+)", lambda found: f"resnet{int(found[1]) + 1}"),
    (r"\.first", ".blocks.0"),
    (r"\.second", ".blocks.1"),
)
_RENAMED: dict[str, Rules] = {
    "encoder": ((r"^inputs", "imgconv"), (r"^outputs", "out.0"), *_AUTOENCODER),
    "decoder": ((r"^inputs", "input"), (r"^outputs", "deconv.0"), *_AUTOENCODER),
    "fusion": (
        (r"^inconv", "inconv.0"),
        (r"^estimate\.2", "estimate.1"),
        (r"\.time\.", ".temb_proj."),
        (r"\.att\.out", ".att.proj_out"),
    ),
}
"""Part → what the release calls otherwise than we do."""
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}

_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "model.diffusion_model.")


def import_release(
    files: Mapping[str, Path], folder: Path, progress: Progress, config: MagicFuseConfig = PAPER
) -> None:
    """Convert the release into the new weights folder `folder`, one part in memory at a time.

    Parameters
    ----------
    files
        The authors' four files (`.pth`, or `.safetensors` for the last three): `ae` holds
        {"encoder": E, "decoder": D}, `ikr` and `ckg` hold Ψ and Φ in the key layout of
        latent-diffusion U-Nets, and `mkf` is the MKF branch's `model.pth` with F & S.
    progress
        Called with a line of text for each part, and for each wrapper or prefix that was removed.
    config
        The configuration that the files were trained with; it is written with `trained` set.

    Raises
    ------
    CheckpointError
        The folder exists, a file is missing or corrupt, or a tensor is missing, unknown or of
        another shape; the message names it. Nothing is left behind.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} exists; remove it, or give another output folder")
    for file in files.values():
        if not file.is_file():
            raise CheckpointError(f"release file {file} is missing; check the path")
    with torch.device("meta"):
        model = MagicFuse.from_config(config)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as temporary:
            partial = Path(temporary) / folder.name
            for part in PARTS:
                file, tensors = _tensors_of(part, files, progress)
                ours = converted(part, tensors, config, getattr(model, part), str(file))
                checkpoint.save_tensors(partial, part, ours)
                count = sum(tensor.numel() for tensor in ours.values())
                progress(f"{part}: {len(ours)} tensors, {count:,} parameters")
            checkpoint.write_config(partial, dataclasses.replace(config, trained=True))
            partial.rename(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written: {error.strerror}; check its permissions and free space"
        ) from error


def _tensors_of(
    part: str, files: Mapping[str, Path], progress: Progress
) -> tuple[Path, Mapping[str, Any]]:
    """Return the file that a part is in, and what the file holds for it."""
    if part not in ("encoder", "decoder"):
        file = files[{"psi": "ikr", "phi": "ckg", "fusion": "mkf"}[part]]
        return file, _unwrapped(read_release(file), file, progress)
    file = files["ae"]
    tensors = read_release(file).get(part)
    if not isinstance(tensors, dict):
        raise CheckpointError(
            f"{file} has no {part!r}; accepted: {{'encoder': ..., 'decoder': ...}}"
        )
    return file, tensors


def read_release(file: Path) -> dict[str, Any]:
    """Read a `.pth` or `.safetensors` file onto the CPU; raises `CheckpointError`."""
    if file.suffix == ".safetensors":
        return dict(checkpoint.read_tensors(file))
    try:
        # A mapped file costs no memory until its tensors are written; old formats cannot be mapped.
        content = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except Exception as error:  # torch may raise anything on damaged bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"release file {file} cannot be loaded as weights ({reason}); download it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"release file {file} holds a {type(content).__name__}; accepted: a dict of tensors"
        )
    return content


def _unwrapped(content: dict[str, Any], file: Path, progress: Progress) -> dict[str, Any]:
    """Take off what training scripts wrap around a state dict, and say so."""
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            progress(f"{file}: only its entry {wrapper!r} is used")
            content = content[wrapper]
    for name in content:
        if not isinstance(name, str):
            raise CheckpointError(f"{file} has an entry {name!r:.60}; accepted: names of tensors")
    for prefix in _PREFIXES:
        if content and all(name.startswith(prefix) for name in content):
            progress(f"{file}: the prefix {prefix!r} of every name is dropped")
            content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return content


def converted(
    part: str, tensors: Mapping[str, Any], config: MagicFuseConfig, module: nn.Module, source: str
) -> dict[str, Tensor]:
    """Convert what a file of the release holds for one of `PARTS` to that part's state dict.

    The state dict is in float32. The module may be on the meta device and is not changed; `source`
    is the file's name in messages.

    Raises
    ------
    CheckpointError
        A tensor is missing, unknown, of another shape or not of real numbers.
    """
    names, expected = names_of(part, config, module), module.state_dict()
    result: dict[str, Tensor] = {}
    for name, ours in names.items():
        tensor, wanted = tensors.get(name), expected[ours].shape
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{source} lacks the tensor {name!r}; download the file again")
        if tensor.shape != wanted:
            raise CheckpointError(
                f"{source}: tensor {name!r} has shape {tuple(tensor.shape)}, {part} needs "
                f"{tuple(wanted)}; it is not the file of this part"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{source}: tensor {name!r} is of {tensor.dtype}; accepted: floating point"
            )
        result[ours] = tensor.float()
    unknown = next((name for name in tensors if name not in names), None)
    if unknown is not None:
        raise CheckpointError(
            f"{source} has an entry {unknown!r} that {part} has no place for; it is not the file "
            "of this part, or of another version"
        )
    return result


def names_of(part: str, config: MagicFuseConfig, module: nn.Module) -> dict[str, str]:
    """Return the release's name of each tensor of a part → its name in our module."""
    names = {}
    for ours in module.state_dict():
        theirs = ours
        if part in ("psi", "phi"):
            denoiser = config.psi if part == "psi" else config.phi
            theirs = _latent_diffusion_name(ours.removeprefix("unet."), denoiser)
        for pattern, replacement in _RENAMED.get(part, ()):
            theirs = re.sub(pattern, replacement, theirs)
        names[theirs] = ours
    return names


def _latent_diffusion_name(ours: str, config: DenoiserConfig) -> str:
    """Return the name that latent diffusion gives to a tensor of our U-Net.

    It counts the layers of either side in one list, in the order in which they run, and the parts
    of each: a residual block, its transformer if it has one, what halves or doubles the size.
    """
    path, _, kind = ours.rpartition(".")
    if path in _ENDS:
        return f"{_ENDS[path]}.{kind}"
    side, *place = path.split(".")
    level = 0 if side == "mid_block" else int(place.pop(0))
    what, index, inner = place[0], int(place[1]), place[2:]
    each = config.blocks + 1  # entries of a level, on either side
    if what == "resnets":
        inner = [_RESNET[inner[0]]]
    if side == "mid_block":
        spot = f"middle_block.{1 if what == 'attentions' else 2 * index}"
    elif what == "downsamplers":
        spot, inner = f"input_blocks.{(level + 1) * each}.0", ["op"]
    elif what == "upsamplers":
        attends = len(config.multipliers) - 1 - level in config.attention_levels
        spot = f"output_blocks.{(level + 1) * each - 1}.{2 if attends else 1}"
    else:
        first = 1 if side == "down_blocks" else 0  # conv_in comes before the first level
        flat = "input_blocks" if side == "down_blocks" else "output_blocks"
        spot = f"{flat}.{first + level * each + index}.{int(what == 'attentions')}"
    return ".".join([spot, *inner, kind])
