"""Importer of the authors' released weights (four `.pth` files) into a weights folder.

Every tensor of the release is used and none is missing; names and shapes are checked against the
configuration. Files are loaded with `weights_only=True`, so that they cannot run code.

The names are those of the files' tensors. No test shows yet that the imported model computes what
the authors' own code computes.
"""

from __future__ import annotations

import dataclasses
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from magicfuse_ros.model import checkpoint
from magicfuse_ros.model.checkpoint import PARTS, CheckpointError
from magicfuse_ros.model.config import (
    AutoencoderConfig,
    DenoiserConfig,
    FusionConfig,
    MagicFuseConfig,
)
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.sizes import PAPER

Progress = Callable[[str], None]
Names = dict[str, str]
"""Name of a tensor in the release → its name in our part."""

_RESIDUAL_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TRANSFORMER_BLOCK = (
    *("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"),
    *(f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in _ATTENTION),
)
_SPATIAL_TRANSFORMER = {name: name for name in ("norm", "proj_in", "proj_out")} | {
    f"transformer_blocks.0.{name}": f"transformer_blocks.0.{name}" for name in _TRANSFORMER_BLOCK
}

_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "model.diffusion_model.")


@dataclass(frozen=True, kw_only=True)
class ReleaseFiles:
    """The authors' four files (`.pth`, or `.safetensors` for the last three).

    Attributes
    ----------
    ae
        `ae.pth`: {"encoder": E, "decoder": D}.
    ikr, ckg
        `ikr.pth` and `ckg.pth`: Ψ and Φ in the key layout of latent-diffusion U-Nets.
    mkf
        `model.pth` of the MKF branch: F & S.
    """

    ae: Path
    ikr: Path
    ckg: Path
    mkf: Path


def import_release(
    files: ReleaseFiles, folder: Path, progress: Progress, config: MagicFuseConfig = PAPER
) -> None:
    """Convert the release into the new weights folder `folder`, one part in memory at a time.

    Parameters
    ----------
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
    for file in dataclasses.astuple(files):
        if not file.is_file():
            raise CheckpointError(f"release file {file} is missing; check the path")
    with torch.device("meta"):
        model = MagicFuse.from_config(config)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as temporary:
            partial = Path(temporary) / folder.name
            _import_parts(files, partial, progress, config, model)
            checkpoint.write_config(partial, dataclasses.replace(config, trained=True))
            partial.rename(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written: {error.strerror}; check its permissions and free space"
        ) from error


def _import_parts(
    files: ReleaseFiles,
    folder: Path,
    progress: Progress,
    config: MagicFuseConfig,
    model: MagicFuse,
) -> None:
    sources = {"encoder": files.ae, "decoder": files.ae, "psi": files.ikr, "phi": files.ckg}
    for part in PARTS:
        file = sources.get(part, files.mkf)
        content = read_release(file)
        if file is files.ae:
            tensors = content.get(part)
            if not isinstance(tensors, dict):
                raise CheckpointError(
                    f"{file} has no {part!r}; accepted: {{'encoder': ..., 'decoder': ...}}"
                )
        else:
            tensors = _unwrapped(content, file, progress)
        ours = converted(part, tensors, config, getattr(model, part), str(file))
        checkpoint.save_tensors(folder, part, ours)
        count = sum(tensor.numel() for tensor in ours.values())
        progress(f"{part}: {len(ours)} tensors, {count:,} parameters")


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
    """Convert one part of the release.

    Parameters
    ----------
    part
        One of `PARTS`.
    tensors
        What the release's file holds for it.
    module
        The part; it may be on the meta device and is not changed.
    source
        The file's name in messages.

    Returns
    -------
    dict
        The part's state dict, in float32.

    Raises
    ------
    CheckpointError
        A tensor is missing, unknown, of another shape or not of real numbers.
    """
    names = _names(part, config)
    theirs = {ours: name for name, ours in names.items()}
    expected = module.state_dict()
    result: dict[str, Tensor] = {}
    for ours, parameter in expected.items():
        # A small autoencoder of ours has layers that the release has no name for.
        name = theirs.get(ours, f"that becomes {ours} of {part}")
        tensor = tensors.get(name)
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{source} lacks the tensor {name!r}; download the file again")
        if tensor.shape != parameter.shape:
            raise CheckpointError(
                f"{source}: tensor {name!r} has shape {tuple(tensor.shape)}, {part} needs "
                f"{tuple(parameter.shape)}; it is not the file of this part"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{source}: tensor {name!r} is of {tensor.dtype}; accepted: floating point"
            )
        result[ours] = tensor.float()
    for name in tensors:
        if names.get(name) not in expected:
            raise CheckpointError(
                f"{source} has an entry {name!r} that {part} has no place for; it is not the file "
                "of this part, or of another version"
            )
    return result


def _names(part: str, config: MagicFuseConfig) -> Names:
    if part == "encoder":
        return encoder_names(config.autoencoder)
    if part == "decoder":
        return decoder_names(config.autoencoder)
    if part == "fusion":
        return fusion_names(config.fusion)
    return denoiser_names(config.psi if part == "psi" else config.phi)


def _tensors(layers: Names) -> Names:
    """Names of the weights and biases of `layers` (layer in the release → our layer)."""
    return {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in layers.items()
        for kind in ("weight", "bias")
    }


def _residual_blocks(levels: int, blocks: int) -> Names:
    return {
        f"resnet{level + 1}.{block}.blocks.{index}.0": f"levels.{level}.{block}.{name}.0"
        for level in range(levels)
        for block in range(blocks)
        for index, name in enumerate(("first", "second"))
    }


def encoder_names(config: AutoencoderConfig) -> Names:
    """Names in `ae.pth`'s `encoder` → names in `Encoder`."""
    layers = {"imgconv.0": "inputs.0", "noiseconv.0": "merge_noise.0", "out.0": "outputs"}
    layers |= _residual_blocks(config.downsamples + 1, config.encoder_blocks)
    layers |= {f"downsample{n + 1}.0": f"downs.{n}.0" for n in range(config.downsamples)}
    return _tensors(layers)


def decoder_names(config: AutoencoderConfig) -> Names:
    """Names in `ae.pth`'s `decoder` → names in `Decoder`."""
    layers = {"input.0": "inputs.0", "deconv.0": "outputs"}
    layers |= _residual_blocks(config.downsamples + 1, config.decoder_blocks)
    layers |= {f"upsample{n + 1}.1": f"ups.{n}.0" for n in range(config.downsamples)}
    return _tensors(layers)


def fusion_names(config: FusionConfig) -> Names:
    """Names in MKF's `model.pth` → names in `Fusion`."""
    layers = {
        "time_embed.0": "time_embed.0",
        "time_embed.2": "time_embed.2",
        "inconv.0": "inconv",
        "normout": "normout",
        "estimate.0": "estimate.0",
        "estimate.1": "estimate.2",
    }
    residual = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"temb_proj": "time"}
    attention = {name: name for name in ("norm", "q", "k", "v")} | {"proj_out": "out"}
    for block in range(len(config.widths)):
        inner = {f"res{n}.{a}": f"res{n}.{b}" for n in (1, 2) for a, b in residual.items()}
        inner |= {"mlp.0": "mlp.0", "mlp.2": "mlp.2"}
        inner |= {f"att.{a}": f"att.{b}" for a, b in attention.items()}
        layers |= {f"blocks.{block}.{a}": f"blocks.{block}.{b}" for a, b in inner.items()}
    layers |= {f"segproj.{n}": f"segproj.{n}" for n in range(config.taps * len(config.widths))}
    return _tensors(layers)


def denoiser_names(config: DenoiserConfig) -> Names:
    """Names in `ikr.pth` or `ckg.pth`, which are latent diffusion's → names in `Denoiser`.

    They cover every tensor that such a U-Net may have: a `skip_connection` exists only where a
    residual block changes the number of channels, and some layers have no bias.
    """
    blocks, levels, attention_levels = (
        config.blocks,
        len(config.multipliers),
        config.attention_levels,
    )
    layers = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }

    def add(theirs: str, ours: str, parts: Names) -> None:
        layers.update({f"{theirs}.{a}": f"{ours}.{b}" for a, b in parts.items()})

    add("middle_block.0", "mid_block.resnets.0", _RESIDUAL_BLOCK)
    add("middle_block.1", "mid_block.attentions.0", _SPATIAL_TRANSFORMER)
    add("middle_block.2", "mid_block.resnets.1", _RESIDUAL_BLOCK)
    each = blocks + 1  # entries of a level in their flat lists, on either side
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
        for index in range(blocks):
            theirs = f"input_blocks.{1 + level * each + index}"
            add(f"{theirs}.0", f"{down}.resnets.{index}", _RESIDUAL_BLOCK)
            if level in attention_levels:
                add(f"{theirs}.1", f"{down}.attentions.{index}", _SPATIAL_TRANSFORMER)
        if level != levels - 1:
            layers[f"input_blocks.{(level + 1) * each}.0.op"] = f"{down}.downsamplers.0.conv"
        first = (levels - 1 - level) * each
        for index in range(each):
            theirs = f"output_blocks.{first + index}"
            add(f"{theirs}.0", f"{up}.resnets.{index}", _RESIDUAL_BLOCK)
            if level in attention_levels:
                add(f"{theirs}.1", f"{up}.attentions.{index}", _SPATIAL_TRANSFORMER)
        if level != 0:
            position = 2 if level in attention_levels else 1
            layers[f"output_blocks.{first + blocks}.{position}.conv"] = f"{up}.upsamplers.0.conv"
    return _tensors({theirs: f"unet.{ours}" for theirs, ours in layers.items()})
