"""The sizes of the model: each is one configuration of the same classes."""

from __future__ import annotations

from dataclasses import replace

from magicfuse_ros.model.config import (
    AutoencoderConfig,
    DenoiserConfig,
    DiffusionConfig,
    FusionConfig,
    MagicFuseConfig,
    RefinerConfig,
)

PAPER = MagicFuseConfig(
    name="paper",
    labels="mfnet",
    resolution=(640, 480),
    psi=DenoiserConfig(width=64, heads=4, attention_levels=(2, 3)),
    phi=DenoiserConfig(width=256, heads=8, attention_levels=(2,)),
    fusion=FusionConfig(head_activation=False),
    # Ψ and Φ were trained at every timestep; the state of S was trained over these 25 steps.
    diffusion=DiffusionConfig(steps=25, trained_steps=(25,)),
)
"""The published model.

E 220,968, D 188,163, Ψ 39,652,104, Φ 517,670,920, F & S 2,742,148 parameters.
"""

TINY = MagicFuseConfig(
    name="tiny",
    labels="drive",
    resolution=(320, 240),
    autoencoder=AutoencoderConfig(
        encoder_width=32,
        encoder_blocks=1,
        decoder_width=40,
        decoder_blocks=2,
        patch=4,
        downsamples=0,
        norm="none",
        noise_channels=0,
        linear_path=True,
    ),
    psi=DenoiserConfig(
        width=24,
        multipliers=(2, 3, 4),
        blocks=1,
        heads=4,
        norm_groups=8,
        attention_levels=(2,),
        patch=2,
        prediction="z0",
        condition_skip=True,
    ),
    phi=DenoiserConfig(
        width=32,
        multipliers=(1, 2, 4),
        blocks=1,
        heads=4,
        norm_groups=8,
        attention_levels=(2,),
        patch=2,
        prediction="z0",
        condition_skip=True,
    ),
    fusion=FusionConfig(
        widths=(48, 96, 160, 96, 48),
        scales=(1, 2, 4, 2, 1),
        attention=(False, False, True, True, False),
        taps=1,
        mlp_width=96,
        head_width=24,
        time_width=32,
        norm_groups=8,
        patch=2,
    ),
    refiner=RefinerConfig(more_labels=("mfnet",)),
    diffusion=DiffusionConfig(
        steps=1, spacing="trailing", trained_steps=(1,), clip_z0=True, scale_inputs=True
    ),
)
"""The embedded default, for two CPU cores."""

BASE = replace(
    TINY,
    name="base",
    resolution=(480, 360),
    autoencoder=replace(
        TINY.autoencoder, encoder_width=48, encoder_blocks=2, decoder_width=64, decoder_blocks=3
    ),
    psi=replace(TINY.psi, width=32),
    phi=replace(TINY.phi, width=64, heads=8, patch=1),
    fusion=replace(
        TINY.fusion,
        widths=(64, 128, 256, 128, 64),
        mlp_width=192,
        head_width=48,
        time_width=64,
        patch=1,
    ),
    refiner=RefinerConfig(
        widths=(96, 128, 192),
        head_width=64,
        more_labels=("mfnet",),
        camera=1,
    ),
)
"""For those who have a GPU: `tiny`'s layers, wider and finer, most of all in Φ, S and R.

docs/training.md says what it costs, and that it ships as recipes, without weights.
"""

SIZES = {config.name: config for config in (PAPER, BASE, TINY)}
