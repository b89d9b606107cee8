"""The joint reverse process of MagicFuse (paper, Eq. 8-14 and Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from magicfuse_ros.model import diffusion
from magicfuse_ros.model.config import MagicFuseConfig, check_tau
from magicfuse_ros.model.fusion import fused_noise, modulated_weight, radiation_category_map

STATE_LIMIT = 1000.0
"""The values of z^s are clamped to plus and minus this number.

S has no bound of its own: each step may make its state larger, and over hundreds of steps, for
which no model was trained, it would grow to infinity. With the steps that a model was trained for,
its logits stay far below this.
"""


class Networks(Protocol):
    """The networks as the sampler needs them.

    One call runs both Ψ and Φ, so that a runtime may run them side by side.
    """

    def denoise(
        self, condition: Tensor, z_psi: Tensor, z_phi: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Return the predictions of Ψ and Φ at timestep t, each (B, 8, h, w)."""
        ...

    def fuse(
        self, psi: diffusion.Estimate, phi: diffusion.Estimate, z_f: Tensor, state: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Return the weight w and the next z^s, as `fusion.Fusion.forward` does."""
        ...


class Noise(NamedTuple):
    """The standard Gaussian noise that sampling starts from."""

    latent: Tensor  # z_T of Ψ, Φ and F, (B, 8, h, w)
    state: Tensor  # z^s_T of S, (B, classes, h, w)


@dataclass(frozen=True)
class Step:
    """One step's outcome; after the last step it is the sample."""

    t: int  # the timestep
    # Estimates of the restored, the infrared and the fused latent, (B, 8, h, w); decode them with
    # D.
    z0_psi: Tensor
    z0_phi: Tensor
    z0_fused: Tensor
    state: Tensor  # z^s, the segmentation logits at latent size (B, classes, h, w)
    # The modulated weight of Eq. 11, (B, 8, h, w).
    w_r: Tensor
    # M of Eq. 11, (B, 1, h, w).
    radiation: Tensor


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How to sample."""

    timesteps: tuple[int, ...]  # from noisy to clean, as `diffusion.timesteps` lists them
    # τ of Eq. 11, 0 to 1.
    tau: float
    thermal_ids: tuple[int, ...]  # class ids that the radiation category map marks

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
    ) -> SamplerSettings:
        """Return the model's own settings, except for `steps` or `tau` where they are given.

        Raises
        ------
        ConfigError
            `steps` or `tau` is out of range; the message names the range.
        """
        own = config.diffusion
        timesteps = diffusion.timesteps_of(own, own.steps if steps is None else steps)
        return cls(
            timesteps=tuple(timesteps),
            tau=own.tau if tau is None else tau,
            thermal_ids=thermal_ids,
        )


def sample(
    networks: Networks,
    condition: Tensor,
    noise: Noise,
    config: MagicFuseConfig,
    settings: SamplerSettings,
) -> Step:
    """Run the reverse process of all three streams from the same noise (Algorithm 1).

    This is a pure function: the same inputs give the same sample, which is the last step's outcome.

    Parameters
    ----------
    networks
        Ψ, Φ and F & S, in any runtime.
    condition
        c = E(degraded visible image), (B, 8, h, w) in [-1, 1].
    noise
        The starting point (Algorithm 1, lines 6-7).

    Raises
    ------
    ValueError
        `settings` has no timesteps.

    Examples
    --------
    >>> import torch
    >>> from magicfuse_ros.model.magicfuse import MagicFuse
    >>> model = MagicFuse.from_pretrained("models/tiny")
    >>> draw = torch.Generator().manual_seed(0)
    >>> image, noise = torch.rand(1, 3, 48, 64), model.draw_noise(48, 64, draw)
    >>> settings = SamplerSettings.of(model.config, model.labels.thermal_ids())
    >>> with torch.inference_mode():
    ...     step = sample(model, model.encoder(image), noise, model.config, settings)
    >>> tuple(step.z0_fused.shape)
    (1, 8, 12, 16)
    """
    alpha_bars, clip = diffusion.alphas_cumprod(config.diffusion), config.diffusion.clip_z0
    z_psi = z_phi = z_f = noise.latent
    state = noise.state
    outcome: Step | None = None
    for t, t_next in zip(settings.timesteps, (*settings.timesteps[1:], None), strict=False):
        a, s = diffusion.coefficients(alpha_bars[t])
        gain = diffusion.input_gain(a, config.diffusion)
        from_psi, from_phi = networks.denoise(condition, gain * z_psi, gain * z_phi, t)
        psi = diffusion.estimates(from_psi, z_psi, a, s, config.psi.prediction, clip=clip)
        phi = diffusion.estimates(from_phi, z_phi, a, s, config.phi.prediction, clip=clip)
        seen_psi, seen_phi = (diffusion.Estimate(z0, gain * eps) for z0, eps in (psi, phi))
        w, state = networks.fuse(seen_psi, seen_phi, gain * z_f, gain * state, t)  # Eq. 9, 10
        state = state.clamp(-STATE_LIMIT, STATE_LIMIT)
        radiation = radiation_category_map(state, settings.thermal_ids)
        w_r = modulated_weight(w, radiation, settings.tau)  # Eq. 11
        eps_f = fused_noise(w_r, psi.eps, phi.eps)  # Eq. 8
        # Eq. 13, and after the last step Eq. 14.
        fused = diffusion.estimates(eps_f, z_f, a, s, "eps", clip=clip)
        outcome = Step(t, psi.z0, phi.z0, fused.z0, state, w_r, radiation)
        if t_next is not None:
            following = diffusion.coefficients(alpha_bars[t_next])
            z_psi, z_phi, z_f = (  # Eq. 12
                diffusion.add_noise(*each, *following) for each in (psi, phi, fused)
            )
    if outcome is None:
        raise ValueError("the sampler was given no timesteps; at least one is needed")
    return outcome
