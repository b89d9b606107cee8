"""Models small enough for tests: the paper's layout with few channels, and a few-step one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch
from torch import nn

from magicfuse_ros.model.config import (
    AutoencoderConfig,
    DenoiserConfig,
    DiffusionConfig,
    FusionConfig,
    MagicFuseConfig,
    RefinerConfig,
)
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.sizes import PAPER

SMALL_PAPER = dataclasses.replace(
    PAPER,
    name="small-paper",
    resolution=(64, 48),
    autoencoder=AutoencoderConfig(encoder_width=4, decoder_width=6, noise_channels=4),
    psi=dataclasses.replace(PAPER.psi, width=16, norm_groups=8),
    phi=dataclasses.replace(PAPER.phi, width=16, norm_groups=8),
    fusion=dataclasses.replace(
        PAPER.fusion,
        widths=(16,) * 5,
        mlp_width=32,
        head_width=16,
        time_width=16,
        norm_groups=8,
    ),
)
"""`paper` in everything but width: the same layers, in the same order, under the same names."""

SMALL_FEW_STEP = MagicFuseConfig(
    name="small-few-step",
    labels="drive",
    resolution=(64, 48),
    autoencoder=AutoencoderConfig(
        encoder_width=8,
        encoder_blocks=1,
        decoder_width=8,
        decoder_blocks=1,
        patch=4,
        downsamples=0,
        norm="none",
        noise_channels=0,
        linear_path=True,
    ),
    psi=DenoiserConfig(
        width=8,
        multipliers=(1, 2),
        blocks=1,
        heads=2,
        norm_groups=4,
        patch=2,
        prediction="z0",
        condition_skip=True,
    ),
    phi=DenoiserConfig(
        width=8,
        multipliers=(1, 2),
        blocks=1,
        attention_levels=(1,),
        heads=2,
        norm_groups=4,
        patch=2,
        prediction="v",
    ),
    fusion=FusionConfig(
        widths=(8, 16, 8),
        scales=(1, 2, 1),
        attention=(False, True, False),
        taps=1,
        mlp_width=16,
        head_width=8,
        time_width=8,
        norm_groups=4,
        patch=2,
    ),
    diffusion=DiffusionConfig(steps=2, spacing="trailing", clip_z0=True, scale_inputs=True),
)
"""What `tiny` is made of: patches, coarser scales, z0- and v-prediction, few trailing steps."""

SMALL_REFINED = dataclasses.replace(
    SMALL_FEW_STEP,
    name="small-refined",
    refiner=RefinerConfig(widths=(8,), head_width=4, more_labels=("mfnet",)),
    diffusion=dataclasses.replace(SMALL_FEW_STEP.diffusion, steps=1, trained_steps=(1,)),
)
"""The same with an R, at one step, as `tiny` ships."""


def fill(module: nn.Module) -> None:
    """Give every parameter values that depend on nothing but its name's place and its shape."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(module.named_parameters())):
            wave = torch.sin(0.7 * torch.arange(parameter.numel(), dtype=torch.float64) + index)
            if parameter.dim() > 1:
                wave /= math.sqrt(parameter[0].numel())
            elif "norm" in name and name.endswith("weight"):
                wave = 1.0 + 0.1 * wave
            else:
                wave *= 0.1
            parameter.copy_(wave.reshape(parameter.shape))


def save_few_step(parent: Path) -> Path:
    """Save SMALL_FEW_STEP with random weights, the same each time; returns its folder."""
    folder = parent / "small"
    stored(SMALL_FEW_STEP, parent)
    return folder


def stored(config: MagicFuseConfig, parent: Path) -> MagicFuse:
    """Save a model with random weights, the same each time, and load it from its folder."""
    torch.manual_seed(0)
    path = parent / "small"
    MagicFuse.from_config(config).save_pretrained(path)
    return MagicFuse.from_pretrained(path)
