"""Ψ or Φ sampled alone: what one branch makes of an image, without the others' work."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from magicfuse_ros.model.diffusion import Estimate
from magicfuse_ros.model.magicfuse import MagicFuse

Branch = Literal["psi", "phi"]


class OneBranch:
    """The sampler's `Networks` with only Ψ or Φ at work; the other streams hold nothing of use.

    Parameters
    ----------
    model
        Whose branch.
    branch
        Which of the two.
    """

    def __init__(self, model: MagicFuse, branch: Branch) -> None:
        self._model = model
        self._branch = branch

    def denoise(
        self, condition: Tensor, z_psi: Tensor, z_phi: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Prediction of the branch, twice."""
        step = torch.tensor([t], device=condition.device)
        if self._branch == "psi":
            prediction = self._model.psi(condition, z_psi, step)
        else:
            prediction = self._model.phi(condition, z_phi, step)
        return prediction, prediction

    def restore(self, condition: Tensor, z_psi: Tensor, t: int) -> Tensor:
        """Prediction of Ψ alone."""
        return self._model.restore(condition, z_psi, t)

    def fuse(
        self, psi: Estimate, phi: Estimate, z_f: Tensor, state: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Ψ's noise alone, and z^s as it was."""
        del phi, z_f, t
        return torch.ones_like(psi.z0), state
