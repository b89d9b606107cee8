"""Fewer steps: a few-step Ψ or Φ learns, by Eq. 7, what a frozen many-step teacher makes of images.

It learns from pictures, so the teacher may be of another size and have another autoencoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from magicfuse_ros.model import diffusion
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.partial import Branch, OneBranch
from magicfuse_ros.model.sampler import SamplerSettings, sample
from magicfuse_ros.training.branches import BranchLoss, BranchStage
from magicfuse_ros.training.stage import Batch, starting_point


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Who teaches what.

    Attributes
    ----------
    branch
        The branch: `psi` or `phi`.
    teacher
        Name of a shipped model, or a weights folder (from where the command runs). It is shown the
        student's crops as they are, whatever resolution it was made for.
    steps
        DDIM steps of the teacher.
    truth
        Share of samples that learn from the true picture instead, from 0 to below 1. At 0 images
        need not have one: Φ then learns without any infrared.
    """

    branch: Branch
    teacher: str
    steps: int = 25
    truth: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.truth < 1.0:
            raise ConfigError(f"distill.truth is {self.truth}; accepted: 0 to below 1")


class DistillStage(BranchStage):
    """Trains a few-step Ψ or Φ on the pictures of a teacher, by direct regression of z0.

    Parameters
    ----------
    model
        The student.
    teacher
        A model of its own, which is frozen; images must fit its `multiple_of` too.
    loss
        The branch's objective.
    distill
        Who teaches what; its `teacher` was opened by the caller.

    Raises
    ------
    ConfigError
        A number of steps is out of range, or the student's sampling does not begin at pure noise.
    """

    _teacher: MagicFuse

    def __init__(
        self, model: MagicFuse, teacher: MagicFuse, loss: BranchLoss, distill: Distillation
    ) -> None:
        super().__init__(model, distill.branch, loss)
        config = model.config.diffusion
        if config.spacing != "trailing":
            raise ConfigError(
                f"diffusion.spacing of the student is {config.spacing!r}; accepted: 'trailing', as "
                "few steps must begin at pure noise. Change it in its config.json"
            )
        self.__dict__["_teacher"] = teacher  # not a submodule: it is not trained
        parts = ("encoder", "decoder", distill.branch)
        self._freeze({f"teacher_{part}": getattr(teacher, part) for part in parts})
        self._settings = SamplerSettings.of(
            teacher.config, teacher.labels.thermal_ids(), steps=distill.steps
        )
        self._schedule = torch.tensor(
            diffusion.timesteps(config.steps, config.train_steps, config.spacing)
        )
        self._truth = distill.truth

    @torch.no_grad()
    def _taught(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with the teacher's pictures as what the branch should make."""
        image, branch = batch["degraded"], self._branch
        truth = torch.rand(len(image), generator=generator, device=generator.device) < self._truth
        condition, noise = starting_point(self._teacher, image, generator)
        networks = OneBranch(self._teacher, branch)
        step = sample(networks, condition, noise, self._teacher.config, self._settings)
        picture = self._teacher.decoder(step.z0_psi if branch == "psi" else step.z0_phi)
        key = "clean" if branch == "psi" else "infrared"
        there = torch.ones(len(image), device=image.device)  # every image has a target now
        truth = truth.to(image.device)[:, None, None, None]
        return batch | {key: torch.where(truth, batch[key], picture), f"has_{key}": there}

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the objective of the branch with the teacher's pictures as its targets."""
        return super().forward(self._taught(batch, generator), generator)

    def sheet(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Draw as the branch's own stage does; the targets are the teacher's pictures."""
        return super().sheet(self._taught(batch, generator), generator)
