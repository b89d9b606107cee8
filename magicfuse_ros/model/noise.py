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
    """Draw the starting noise for images of `size` (height, width) pixels, on the CPU."""
    inner = latent_size(config, size)
    channels = config.autoencoder.latent_channels
    latent = torch.randn((batch, channels, *inner), generator=generator)
    return Noise(latent, torch.randn((batch, classes, *inner), generator=generator))


def draw_encoder_noise(
    config: MagicFuseConfig, size: tuple[int, int], generator: torch.Generator, batch: int = 1
) -> Tensor | None:
    """Draw the noise that E takes, on the CPU; None where this E takes none."""
    channels = config.autoencoder.noise_channels
    if channels == 0:
        return None
    return torch.randn((batch, channels, *latent_size(config, size)), generator=generator)


def latent_size(config: MagicFuseConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the latent of images of `size` (height, width) pixels."""
    stride = config.autoencoder.stride
    return size[0] // stride, size[1] // stride
