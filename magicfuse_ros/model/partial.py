"""Parts of a model that the sampler can run instead of the whole: one branch, or F & S, alone."""

from __future__ import annotations

from typing import Literal

import torch
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

Branch = Literal["psi", "phi"]


class OneBranch:
    """`Networks` for the sampler that run only Ψ or Φ; the other streams' results mean nothing."""

    def __init__(self, model: MagicFuse, branch: Branch) -> None:
        self._network = model.psi if branch == "psi" else model.phi

    def denoise(
        self, condition: Tensor, z_psi: Tensor, z_phi: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Return the branch's prediction at timestep t twice, as both streams start alike."""
        del z_phi
        prediction = self._network(condition, z_psi, torch.tensor([t], device=condition.device))
        return prediction, prediction

    def fuse(
        self, psi: Estimate, phi: Estimate, z_f: Tensor, state: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Return a weight of 1 everywhere, and z^s unchanged."""
        del phi, z_f, t
        return torch.ones_like(psi.z0), state


class Unaided:
    """`Networks` for the sampler without Ψ and Φ: both estimates are the condition latent.

    What F & S lose without the branches is what the branches are worth.
    """

    def __init__(self, model: MagicFuse) -> None:
        self._model = model
        self._alpha_bars = alphas_cumprod(model.config.diffusion)

    def denoise(
        self, condition: Tensor, z_psi: Tensor, z_phi: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Return the predictions from which both estimates become the condition latent."""
        config = self._model.config
        return (
            self._prediction(condition, z_psi, t, config.psi.prediction),
            self._prediction(condition, z_phi, t, config.phi.prediction),
        )

    def fuse(
        self, psi: Estimate, phi: Estimate, z_f: Tensor, state: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Return the weight w and the next z^s of the model's own F & S."""
        return self._model.fuse(psi, phi, z_f, state, t)

    def _prediction(self, z0: Tensor, seen: Tensor, t: int, kind: Prediction) -> Tensor:
        """Return what a network must predict at timestep t for its estimate to be z0."""
        a, s = coefficients(self._alpha_bars[t])
        if kind == "z0":
            return z0
        z_t = seen / input_gain(a, self._model.config.diffusion)
        eps = noise_from(z0, z_t, a, s)
        return eps if kind == "eps" else a * eps - s * z0
