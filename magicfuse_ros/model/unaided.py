"""F & S without Ψ and Φ: what the two branches are worth is what is lost without them."""

from __future__ import annotations

from torch import Tensor

from magicfuse_ros.model.config import Prediction
from magicfuse_ros.model.diffusion import (
    Estimate,
    alphas_cumprod,
    coefficients,
    input_gain,
    noise_from,
)
from magicfuse_ros.model.magicfuse import MagicFuse


class Unaided:
    """The sampler's `Networks` with F & S alone: the condition latent is both branches' estimate.

    Parameters
    ----------
    model
        Whose F & S; its Ψ and Φ are not run.
    """

    def __init__(self, model: MagicFuse) -> None:
        self._model = model
        self._alpha_bars = alphas_cumprod(model.config.diffusion)

    def denoise(
        self, condition: Tensor, z_psi: Tensor, z_phi: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Predictions by which both estimates are the condition latent."""
        config = self._model.config
        return (
            self._prediction(condition, z_psi, t, config.psi.prediction),
            self._prediction(condition, z_phi, t, config.phi.prediction),
        )

    def restore(self, condition: Tensor, z_psi: Tensor, t: int) -> Tensor:
        """Prediction of Ψ alone by which its estimate is the condition latent."""
        return self._prediction(condition, z_psi, t, self._model.config.psi.prediction)

    def fuse(
        self, psi: Estimate, phi: Estimate, z_f: Tensor, state: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Weight w and the next z^s, of the model's own F & S."""
        return self._model.fuse(psi, phi, z_f, state, t)

    def _prediction(self, z0: Tensor, seen: Tensor, t: int, kind: Prediction) -> Tensor:
        """Return what a network has to say at timestep t for its estimate to be z0."""
        a, s = coefficients(self._alpha_bars[t])
        if kind == "z0":
            return z0
        z_t = seen / input_gain(a, self._model.config.diffusion)
        eps = noise_from(z0, z_t, a, s)
        return eps if kind == "eps" else a * eps - s * z0
