"""The configuration of a model: frozen dataclasses, checked when they are made.

A size of MagicFuse (`paper`, `tiny`) is one `MagicFuseConfig`; there is one implementation for all
sizes. This module is the one source of every default that belongs to the model; `config.json` in a
weights folder is its serialised form.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from magicfuse_ros.model.config_values import dataclass_from, require, require_choice, require_least

Prediction = Literal["eps", "v", "z0"]
Spacing = Literal["leading", "trailing"]
Norm = Literal["instance", "none"]


MAX_DOWNSAMPLES = 16
"""How often E may halve the image at most; without a limit, 2 to that power could be huge."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """E and D, shared by Ψ and Φ; the latent is `stride` times smaller than the image."""

    latent_channels: int = 8
    # Channels, and residual blocks at each resolution, of E and of D.
    encoder_width: int = 32
    encoder_blocks: int = 3
    decoder_width: int = 32
    decoder_blocks: int = 3
    patch: int = 1  # space-to-depth factor at the image side; 1 works on pixels
    downsamples: int = 2  # number of strided convolutions in E, and of bilinear doublings in D
    norm: Norm = "instance"  # which has no learned scale and shift here
    # Channels of Gaussian noise, concatenated in E at latent resolution; 0 for a deterministic E.
    noise_channels: int = 32
    # Whether E and D each add a linear map of their input to what the network gives, and clip the
    # sum instead of ending in a sigmoid. The map starts as the PCA of the patches, so that the
    # networks learn only what it misses. It needs `downsamples` 0.
    linear_path: bool = False

    def __post_init__(self) -> None:
        section, most = "autoencoder", MAX_DOWNSAMPLES
        require_least(
            self, section, 1, "latent_channels", "encoder_width", "decoder_width", "patch"
        )
        require_least(self, section, 0, "encoder_blocks", "decoder_blocks", "noise_channels")
        in_range = 0 <= self.downsamples <= most
        require(in_range, f"{section}.downsamples", self.downsamples, f"0 to {most}")
        require_choice("autoencoder.norm", self.norm, Norm)
        fits = not self.linear_path or self.downsamples == 0
        require(fits, f"{section}.downsamples with linear_path", self.downsamples, "0")

    @property
    def stride(self) -> int:
        """Image pixels per latent position, along each axis."""
        return int(self.patch * 2**self.downsamples)


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """Ψ or Φ: the latent-diffusion U-Net on the condition latent and z_t."""

    # Base number of channels, its multiple at each level, and residual blocks of each level.
    width: int
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    # Levels (0 = finest) with a spatial transformer; the middle block always has one.
    attention_levels: tuple[int, ...] = ()
    # Attention heads, and GroupNorm groups.
    heads: int = 4
    norm_groups: int = 32
    patch: int = 1  # space-to-depth factor on the latent before the U-Net
    prediction: Prediction = "eps"  # what the network predicts: `eps`, `v` or `z0`
    # Whether the network gives a gain G and an offset R, from which z0 = exp(G)·c + R, instead of
    # z0 itself (only with the prediction `z0`). On latents that are nearly a linear transform of
    # the image, a factor below 1 removes noise and one above 1 restores contrast, which is most of
    # restoration.
    condition_skip: bool = False

    def __post_init__(self) -> None:
        require_least(self, "denoiser", 1, "width", "blocks", "heads", "norm_groups", "patch")
        levels = range(len(self.multipliers))
        require(bool(levels), "denoiser.multipliers", self.multipliers, "one number a level")
        for multiplier in self.multipliers:
            channels, groups = multiplier * self.width, (self.norm_groups, self.heads)
            fits = multiplier >= 1 and not any(channels % count for count in groups)
            accepted = f"a multiple of norm_groups ({groups[0]}) and of heads ({groups[1]})"
            require(fits, "denoiser.width × multiplier", channels, accepted)
        for level in self.attention_levels:
            require(level in levels, "denoiser.attention_levels", level, f"0 to {len(levels) - 1}")
        require_choice("denoiser.prediction", self.prediction, Prediction)
        fits = not self.condition_skip or self.prediction == "z0"
        require(fits, "denoiser.condition_skip with prediction", self.prediction, "z0")


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """F and S: layer l has `widths[l]` channels.

    It works at a resolution `scales[l]` times coarser than the patched latent. With every scale 1
    this is the paper's chain of layers; coarser scales in the middle give S a wide receptive field
    for little computation, and a layer that returns to an earlier scale also receives that earlier
    layer's features.
    """

    widths: tuple[int, ...] = (96, 96, 96, 96, 96)
    scales: tuple[int, ...] = (1, 1, 1, 1, 1)
    # Whether each layer has single-head self-attention over every position.
    attention: tuple[bool, ...] = (True, True, True, True, True)
    # Feature maps a layer hands to S: 2 (after the residual blocks and after the attention) or 1
    # (after the attention).
    taps: int = 2
    # Hidden channels of each layer's 1×1 MLP, and of the convolutions that give w.
    mlp_width: int = 192
    head_width: int = 96
    # Whether there is a SiLU between the two convolutions that give w; the published model has
    # none.
    head_activation: bool = True
    time_width: int = 96
    norm_groups: int = 32
    patch: int = 1

    def __post_init__(self) -> None:
        layers, groups = len(self.widths), self.norm_groups
        require(layers >= 1, "fusion.widths", self.widths, "one number a layer")
        require_least(self, "fusion", 1, "mlp_width", "head_width", "patch", "norm_groups")
        for name in ("scales", "attention"):
            value = getattr(self, name)
            require(len(value) == layers, f"fusion.{name}", value, f"{layers} entries, as widths")
        for width in self.widths:
            fits = width >= 1 and width % groups == 0
            require(fits, "fusion.widths", width, f"multiples of {groups}")
        for scale in self.scales:
            require(scale in (1, 2, 4, 8), "fusion.scales", scale, "1, 2, 4 or 8")
        last, accepted = self.scales[-1], "1: w and z^s are at full resolution"
        require(last == 1, "fusion.scales (last)", last, accepted)
        require(self.taps in (1, 2), "fusion.taps", self.taps, "1 or 2")
        is_even = self.time_width >= 2 and self.time_width % 2 == 0
        require(is_even, "fusion.time_width", self.time_width, "an even number")


@dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    """R, which finds what is warm and sharpens S's classes; a model may do without it.

    Attributes
    ----------
    widths
        Channels on the way up from its trunk, at the latent's size, half of that, and so on; the
        trunk goes one level below the last, and has at most five.
    head_width
        Channels of its heads, at half of the image's size.
    more_labels
        Built-in label sets whose classes it can tell instead of S's.
    labels
        Which of these it shows; empty for S's.
    camera
        Camera pixels per pixel of the model's resolution, along each axis, in training and
        evaluation.
    """

    widths: tuple[int, ...] = (48, 64, 96)
    head_width: int = 32
    more_labels: tuple[str, ...] = ()
    labels: str = ""
    camera: int = 2

    def __post_init__(self) -> None:
        levels = "one number for each of 1 to 3 levels, 1 or more"
        fits = 1 <= len(self.widths) <= 3 and min(self.widths) >= 1
        require(fits, "refiner.widths", self.widths, levels)
        if self.labels:
            require(
                self.labels in self.more_labels,
                "refiner.labels",
                repr(self.labels),
                " or ".join(map(repr, ("", *self.more_labels))),
            )
        for name in ("head_width", "camera"):
            require(getattr(self, name) >= 1, f"refiner.{name}", getattr(self, name), "1 or more")


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The noise schedule and how the reverse process is run."""

    # T, and the linear β schedule over it.
    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.0120
    # DDIM steps at inference, and how their timesteps are spread over T.
    steps: int = 25
    spacing: Spacing = "leading"
    # The numbers of DDIM steps that F and S were trained for; with others their masks and pictures
    # may be worthless. Left empty, it becomes `steps` alone.
    trained_steps: tuple[int, ...] = ()
    # Whether every z0 estimate is clipped to [-1, 1]. All latents lie in that range, and clipping
    # steadies few-step sampling.
    clip_z0: bool = False
    # Whether the networks see a·z_t, a·ε and a·z^s, with a = sqrt(ᾱ_t), instead of z_t, ε and z^s.
    # Few-step sampling starts at pure noise, which then does not drown the condition latent; at t =
    # 0, where a is nearly 1, this changes next to nothing.
    scale_inputs: bool = False
    # τ of Eq. 11: the largest weight that Ψ's noise may have inside thermal classes.
    tau: float = 0.4
    # Seed of the starting noise; with the same seed, the same frame gives the same result.
    seed: int = 0

    def __post_init__(self) -> None:
        require_least(self, "diffusion", 1, "train_steps")
        betas, accepted = (self.beta_start, self.beta_end), "0 < beta_start <= beta_end < 1"
        require(0.0 < betas[0] <= betas[1] < 1.0, "diffusion.beta_start, beta_end", betas, accepted)
        check_steps(self.steps, self.train_steps)
        if not self.trained_steps:
            object.__setattr__(self, "trained_steps", (self.steps,))
        in_range = all(1 <= steps <= self.train_steps for steps in self.trained_steps)
        accepted = f"numbers from 1 to {self.train_steps}"
        require(in_range, "diffusion.trained_steps", self.trained_steps, accepted)
        check_tau(self.tau)
        require_choice("diffusion.spacing", self.spacing, Spacing)


def check_steps(steps: int, train_steps: int) -> None:
    """Raise `ConfigError` unless `steps` is a possible number of DDIM steps."""
    require(1 <= steps <= train_steps, "steps", steps, f"1 to {train_steps}")


def check_tau(tau: float) -> None:
    """Raise `ConfigError` unless `tau` is a possible τ of Eq. 11."""
    require(0.0 <= tau <= 1.0, "tau", tau, "0.0 to 1.0")


@dataclass(frozen=True, kw_only=True)
class MagicFuseConfig:
    """A whole model."""

    name: str  # what the node and the reports call it
    # Name of a built-in label set, or the path of a YAML file (relative to the weights folder).
    labels: str
    # (width, height) in pixels that the model was made for; frames are fitted into it.
    resolution: tuple[int, int]
    trained: bool = False  # False while the weights are random; outputs are then marked as such
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    psi: DenoiserConfig
    phi: DenoiserConfig
    fusion: FusionConfig = field(default_factory=FusionConfig)
    # None for a model whose pictures are what D decodes, as in the paper.
    refiner: RefinerConfig | None = None
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    def __post_init__(self) -> None:
        multiple, stride = self.multiple_of, self.autoencoder.stride
        fits = all(side >= multiple and side % multiple == 0 for side in self.resolution)
        require(fits, "resolution", self.resolution, f"multiples of {multiple}, from {multiple} on")
        fits = self.refiner is None or stride == 4
        require(fits, "autoencoder.stride with refiner", stride, "4")

    @property
    def multiple_of(self) -> int:
        """Image sides must be multiples of this; at lower resolutions networks take odd sizes."""
        patch = math.lcm(self.psi.patch, self.phi.patch, self.fusion.patch)
        return self.autoencoder.stride * patch

    def steps_warning(self, steps: int) -> str:
        """Say that the model was not trained for this number of DDIM steps; empty where it was.

        It is empty for a model with random weights too: `trained` already says what that is.
        """
        known = self.diffusion.trained_steps
        if not self.trained or steps in known:
            return ""
        numbers = " or ".join(str(each) for each in known)
        return (
            f"model {self.name!r} was trained for {numbers} step{'s' * (known != (1,))} a picture, "
            f"not for {steps}: its pictures and masks may be wrong; set steps to {numbers}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MagicFuseConfig:
        """Build from what `to_dict` returns; raises `ConfigError` as `dataclass_from` does."""
        return dataclass_from(cls, values, "config")
