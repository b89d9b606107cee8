"""Ψ and Φ: the latent-diffusion U-Net conditioned on the degraded image (paper, section 2.2)."""

from __future__ import annotations

from typing import Any, cast

from diffusers import UNet2DConditionModel
from torch import Tensor, cat, nn
from torch.nn import functional

from magicfuse_ros.model.config import DenoiserConfig

_GAIN_LIMIT = 4.0  # of |G|: gains from 0.018 to 55


def _unet(config: DenoiserConfig, channels: int) -> nn.Module:
    widths = tuple(config.width * multiplier for multiplier in config.multipliers)
    levels = range(len(widths))
    # To mypy, diffusers' classes are neither typed nor Modules.
    unet: Any = UNet2DConditionModel(  # type: ignore[no-untyped-call]
        in_channels=2 * channels,
        out_channels=2 * channels if config.condition_skip else channels,
        block_out_channels=widths,
        down_block_types=tuple(
            "CrossAttnDownBlock2D" if level in config.attention_levels else "DownBlock2D"
            for level in levels
        ),
        up_block_types=tuple(
            "CrossAttnUpBlock2D" if level in config.attention_levels else "UpBlock2D"
            for level in reversed(levels)
        ),
        layers_per_block=config.blocks,
        # Without a context both attentions of a transformer block attend to their own input, so
        # the context is as wide as it.
        cross_attention_dim=widths,
        # diffusers keeps this misnomer for compatibility: it is the number of heads.
        attention_head_dim=config.heads,
        norm_num_groups=config.norm_groups,
    )
    return cast("nn.Module", unet)


class Denoiser(nn.Module):
    """One diffusion branch.

    What it predicts (ε, v or z0) is `config.prediction`; `diffusion.estimates` converts it.
    """

    def __init__(self, config: DenoiserConfig, latent_channels: int) -> None:
        super().__init__()
        self.config = config
        self.unet = _unet(config, latent_channels * config.patch**2)

    def forward(self, condition: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """Predict from the condition latent and the noisy latent.

        Parameters
        ----------
        condition
            c = E(degraded visible image), (B, 8, h, w) in [-1, 1].
        z_t
            (B, 8, h, w); h and w multiples of `config.patch`.
        t
            Timesteps, (B,) or (1,), integer or floating point.

        Returns
        -------
        Tensor
            (B, 8, h, w): ε, v or z0.
        """
        x = functional.pixel_unshuffle(cat([condition, z_t], dim=1), self.config.patch)
        # return_dict=False keeps the graph exportable.
        x = self.unet(x, t, encoder_hidden_states=None, return_dict=False)[0]
        x = functional.pixel_shuffle(x, self.config.patch)
        if not self.config.condition_skip:
            return x
        gain, offset = x.chunk(2, dim=1)
        return condition * gain.clamp(-_GAIN_LIMIT, _GAIN_LIMIT).exp() + offset
