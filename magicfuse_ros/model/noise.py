"""The Gaussian noise that a sample starts from; nothing else in it is random."""

from __future__ import annotations

import torch
from torch import Tensor

from magicfuse_ros.model.config import MagicFuseConfig
from magicfuse_ros.model.sampler import Noise


def draw_noise(
    config: MagicFuseConfig,
    classes: int,
    size: tuple[int, int],
    generator: torch.Generator,
    batch: int = 1,
) -> Noise:
    """Draw the starting noise for images of `size` (height, width), on the generator's device."""
    inner = latent_size(config, size)
    channels = config.autoencoder.latent_channels
    shapes = ((batch, channels, *inner), (batch, classes, *inner))
    return Noise(
        *(torch.randn(shape, generator=generator, device=generator.device) for shape in shapes)
    )


def draw_encoder_noise(
    config: MagicFuseConfig, size: tuple[int, int], generator: torch.Generator, batch: int = 1
) -> Tensor | None:
    """Draw what E takes, on the generator's device; None where this E takes none."""
    channels = config.autoencoder.noise_channels
    if channels == 0:
        return None
    shape = (batch, channels, *latent_size(config, size))
    return torch.randn(shape, generator=generator, device=generator.device)


def latent_size(config: MagicFuseConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the latent of images of `size` (height, width) pixels."""
    stride = config.autoencoder.stride
    return size[0] // stride, size[1] // stride
