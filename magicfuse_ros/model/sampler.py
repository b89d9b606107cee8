"""The joint reverse process of MagicFuse (paper, Eq. 8-14 and Algorithm 1).

A pure function: the noise is injected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from magicfuse_ros.model import diffusion
from magicfuse_ros.model.config import MagicFuseConfig, check_tau
from magicfuse_ros.model.fusion import fused_noise, modulated_weight, radiation_category_map

Variant = Literal["full", "no_estimates", "no_segmentation", "late_fusion", "restore_only"]
"""The paper's ablations: the full model, and Models I, II, III and IV (section 3.5)."""


class Networks(Protocol):
    """The networks as the sampler needs them.

    Ψ and Φ are asked together, so that a runtime may run them side by side.
    """

    def denoise(
        self, condition: Tensor, z_psi: Tensor, z_phi: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Predictions of Ψ and Φ at timestep t, each (B, 8, h, w)."""
        ...

    def restore(self, condition: Tensor, z_psi: Tensor, t: int) -> Tensor:
        """Prediction of Ψ alone."""
        ...

    def fuse(
        self, psi: diffusion.Estimate, phi: diffusion.Estimate, z_f: Tensor, state: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Weight w and the next z^s, as `fusion.Fusion.forward`."""
        ...


class Noise(NamedTuple):
    """Where sampling starts, standard Gaussian.

    Attributes
    ----------
    latent
        z_T of Ψ, Φ and F, (B, 8, h, w).
    state
        z^s_T of S, (B, classes, h, w).
    """

    latent: Tensor
    state: Tensor


@dataclass(frozen=True)
class Step:
    """One step's outcome; after the last step it is the sample.

    Attributes
    ----------
    t
        The timestep.
    z0_psi, z0_phi, z0_fused
        Estimates of the restored, the infrared and the fused latent, (B, 8, h, w); decode them with
        D.
    state
        z^s, the segmentation logits at latent size (B, classes, h, w).
    w_r
        The modulated weight of Eq. 11, (B, 8, h, w).
    radiation
        M of Eq. 11, (B, 1, h, w).
    """

    t: int
    z0_psi: Tensor
    z0_phi: Tensor
    z0_fused: Tensor
    state: Tensor
    w_r: Tensor
    radiation: Tensor


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How to sample; the defaults are the model's `DiffusionConfig`."""

    timesteps: tuple[int, ...]
    tau: float
    thermal_ids: tuple[int, ...]
    variant: Variant = "full"

    def __post_init__(self) -> None:
        check_tau(self.tau)

    @classmethod
    def of(
        cls,
        config: MagicFuseConfig,
        thermal_ids: tuple[int, ...],
        *,
        steps: int | None = None,
        tau: float | None = None,
        variant: Variant = "full",
    ) -> SamplerSettings:
        """Take the model's own settings, with what is given put in place of them.

        Raises
        ------
        ConfigError
            `steps` or `tau` is out of range; the message says the range.
        """
        diffusion_config = config.diffusion
        return cls(
            timesteps=tuple(
                diffusion.timesteps_of(
                    diffusion_config, diffusion_config.steps if steps is None else steps
                )
            ),
            tau=diffusion_config.tau if tau is None else tau,
            thermal_ids=thermal_ids,
            variant=variant,
        )


def sample(
    networks: Networks,
    condition: Tensor,
    noise: Noise,
    config: MagicFuseConfig,
    settings: SamplerSettings,
    on_step: Callable[[Step], None] | None = None,
) -> Step:
    """Run the reverse process of all three streams from the same noise and return its last step.

    Parameters
    ----------
    networks
        Ψ, Φ and F & S, in any runtime.
    condition
        c = E(degraded visible image), (B, 8, h, w) in [-1, 1].
    noise
        The starting point (Algorithm 1, lines 6-7).
    on_step
        Called after each step with its outcome.
    """
    alpha_bars = diffusion.alphas_cumprod(config.diffusion)
    clip = config.diffusion.clip_z0
    z_psi = z_phi = z_f = noise.latent
    state = noise.state
    outcome: Step | None = None
    for index, t in enumerate(settings.timesteps):
        a, s = diffusion.coefficients(alpha_bars[t])
        gain = diffusion.input_gain(a, config.diffusion)
        if settings.variant == "restore_only":
            psi_out = networks.restore(condition, gain * z_psi, t)
            psi = phi = diffusion.estimates(psi_out, z_psi, a, s, config.psi.prediction, clip=clip)
        else:
            psi_out, phi_out = networks.denoise(condition, gain * z_psi, gain * z_phi, t)
            psi = diffusion.estimates(psi_out, z_psi, a, s, config.psi.prediction, clip=clip)
            phi = diffusion.estimates(phi_out, z_phi, a, s, config.phi.prediction, clip=clip)
        outcome = fuse_step(networks, psi, phi, z_f, state, t, config, settings)
        state = outcome.state
        if on_step is not None:
            on_step(outcome)
        if index + 1 < len(settings.timesteps):
            a_next, s_next = diffusion.coefficients(alpha_bars[settings.timesteps[index + 1]])
            z_psi = diffusion.add_noise(psi.z0, psi.eps, a_next, s_next)
            z_phi = diffusion.add_noise(phi.z0, phi.eps, a_next, s_next)
            # Eq. 12; ε follows from z0 so that the two stay consistent where z0 was clipped.
            eps_f = diffusion.noise_from(outcome.z0_fused, z_f, a, s)
            z_f = diffusion.add_noise(outcome.z0_fused, eps_f, a_next, s_next)
    if outcome is None:
        raise ValueError("the sampler was given no timesteps; at least one is needed")
    return outcome


def fuse_step(
    networks: Networks,
    psi: diffusion.Estimate,
    phi: diffusion.Estimate,
    z_f: Tensor,
    state: Tensor,
    t: int,
    config: MagicFuseConfig,
    settings: SamplerSettings,
) -> Step:
    """F, S and Eq. 8-11 and 13 of one step."""
    a, s = diffusion.coefficients(diffusion.alphas_cumprod(config.diffusion)[t])
    gain = diffusion.input_gain(a, config.diffusion)
    clip = config.diffusion.clip_z0
    variant = settings.variant
    # Model I does not show the estimates to F.
    shown = 0.0 if variant == "no_estimates" else 1.0
    seen_psi, seen_phi = (diffusion.Estimate(shown * z0, gain * eps) for z0, eps in (psi, phi))
    w, state = networks.fuse(seen_psi, seen_phi, gain * z_f, gain * state, t)
    radiation = radiation_category_map(state, settings.thermal_ids)
    if variant == "no_segmentation":
        radiation = radiation.new_zeros(radiation.shape)
    w_r = modulated_weight(w, radiation, settings.tau)
    if variant == "restore_only":
        w_r = w_r.new_ones(w_r.shape)
    z0_fused = diffusion.clean_from(fused_noise(w_r, psi.eps, phi.eps), z_f, a, s, clip=clip)
    return Step(t, psi.z0, phi.z0, z0_fused, state, w_r, radiation)
