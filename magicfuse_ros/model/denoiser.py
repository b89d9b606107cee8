"""Ψ and Φ: the latent-diffusion U-Net conditioned on the degraded image (paper, section 2.2)."""

from __future__ import annotations

from torch import Tensor, cat, nn
from torch.nn import functional

from magicfuse_ros.model.config import DenoiserConfig
from magicfuse_ros.model.unet import UNet

_GAIN_LIMIT = 4.0  # of |G|: gains from 0.018 to 55


class Denoiser(nn.Module):
    """One diffusion branch.

    `config.prediction` says what it predicts (ε, v or z0); `diffusion.estimates` converts it.
    """

    def __init__(self, config: DenoiserConfig, latent_channels: int) -> None:
        super().__init__()
        self.config = config
        channels = latent_channels * config.patch**2
        self.unet = UNet(
            2 * channels,
            2 * channels if config.condition_skip else channels,
            widths=[config.width * multiplier for multiplier in config.multipliers],
            blocks=config.blocks,
            attention_levels=config.attention_levels,
            heads=config.heads,
            groups=config.norm_groups,
        )

    def forward(self, condition: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """Predict ε, v or z0, (B, 8, h, w), from the condition latent and the noisy one.

        Both latents are (B, 8, h, w), h and w multiples of `config.patch`. The condition is c =
        E(degraded visible image) in [-1, 1]. The timesteps t are (B,) or (1,), of any number type.
        """
        x = functional.pixel_unshuffle(cat([condition, z_t], dim=1), self.config.patch)
        x = functional.pixel_shuffle(self.unet(x, t), self.config.patch)
        if not self.config.condition_skip:
            return x
        gain, offset = x.chunk(2, dim=1)
        return condition * gain.clamp(-_GAIN_LIMIT, _GAIN_LIMIT).exp() + offset
