"""The paper's ablations (section 3.5), Models I to IV, around the one sampler of `model`."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from magicfuse_ros.model.diffusion import Estimate
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.partial import OneBranch
from magicfuse_ros.model.sampler import Networks, SamplerSettings

Variant = Literal["full", "no_estimates", "no_segmentation", "late_fusion", "restore_only"]
"""The full model, and Models I, II, III and IV."""


class NoEstimates:
    """Model I: F and S are not shown the estimates of the two clean latents, only the noises."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    def denoise(
        self, condition: Tensor, z_psi: Tensor, z_phi: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Return the predictions of Ψ and Φ at timestep t."""
        return self._networks.denoise(condition, z_psi, z_phi, t)

    def fuse(
        self, psi: Estimate, phi: Estimate, z_f: Tensor, state: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Return w and the next z^s, with zeros in the estimates' place."""
        psi, phi = (Estimate(torch.zeros_like(z0), eps) for z0, eps in (psi, phi))
        return self._networks.fuse(psi, phi, z_f, state, t)


class RestoredOnly(OneBranch):
    """Model IV: Ψ alone makes the picture; S sees Ψ's estimate in both places."""

    def __init__(self, model: MagicFuse) -> None:
        super().__init__(model, "psi")
        self._model = model

    def fuse(
        self, psi: Estimate, phi: Estimate, z_f: Tensor, state: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Return Ψ's weight as 1 everywhere, and the next z^s."""
        del phi
        w, state = self._model.fuse(psi, psi, z_f, state, t)
        return torch.ones_like(w), state


def ablated(
    model: MagicFuse, settings: SamplerSettings, variant: Variant
) -> tuple[Networks, SamplerSettings]:
    """Return the networks and the settings with which `sample` gives an ablation.

    Model II and Model IV have no radiation category map. Model III samples as the full model does;
    its picture is `late_fusion` of the two decoded ones. In Model IV the stream of Φ holds nothing
    of use.
    """
    if variant in ("no_segmentation", "restore_only"):
        settings = replace(settings, thermal_ids=())
    if variant == "no_estimates":
        return NoEstimates(model), settings
    return RestoredOnly(model) if variant == "restore_only" else model, settings


def late_fusion(enhanced: Tensor, infrared: Tensor, w_r: Tensor) -> Tensor:
    """Fuse as Model III does: weigh the two decoded images instead of the two noises.

    All images are (B, 3, H, W) in [0, 1]. The mean of w_r (B, 8, h, w) over its channels, limited
    to [0, 1], is the weight of `enhanced`.
    """
    weight = functional.interpolate(
        w_r.mean(dim=1, keepdim=True).clamp(0.0, 1.0),
        size=enhanced.shape[-2:],
        mode="bilinear",
        align_corners=False,
    )
    return weight * enhanced + (1.0 - weight) * infrared
