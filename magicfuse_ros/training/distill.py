"""Distillation: a part of a model learns what a frozen teacher makes of images.

The objective is that of the part's own stage, with the teacher's outputs in the place of targets:
pictures for Ψ and Φ, classes for F and S, and for R infrared, heat and classes. A teacher of many
steps so makes a student of few (by Eq. 7, at the timesteps of the student), a large one a small
one. What passes from one to the other are pictures and classes, so sizes and autoencoders may
differ; images need no infrared and no labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from magicfuse_ros.model import diffusion
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.labels import UNKNOWN
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.partial import OneBranch
from magicfuse_ros.model.refiner import enlarged, infrared_at, split_maps
from magicfuse_ros.model.sampler import SamplerSettings, sample
from magicfuse_ros.training.branches import BranchStage
from magicfuse_ros.training.refine import RefineStage, shrunk
from magicfuse_ros.training.semantics import TAUGHT, TAUGHT_CLASSES, TAUGHT_HEAT
from magicfuse_ros.training.stage import Batch, Stage, starting_point


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Who teaches what."""

    # The stage whose networks learn, and whose objective it is.
    stage: Literal["psi", "phi", "mkf", "refine"]
    # Name of a shipped model, or a weights folder (from where the command runs). It is shown the
    # student's crops as they are, whatever resolution it was made for.
    teacher: str
    steps: int = 25  # DDIM steps of the teacher
    # Share of samples that learn from what is true instead, from 0 to below 1, among those of which
    # it is known.
    truth: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.truth < 1.0:
            raise ConfigError(f"distill.truth is {self.truth}; accepted: 0 to below 1")


class DistillStage(Stage):
    """Trains as the student's own stage, `inner`, does, on what a teacher makes of each batch.

    The teacher is a model of its own and is frozen; images must fit its `multiple_of` too.

    Raises
    ------
    ConfigError
        A number of steps is out of range, Ψ or Φ of a student whose sampling does not begin at pure
        noise is to learn, or the teacher has other classes or no R.
    """

    _teacher: MagicFuse

    def __init__(
        self, inner: Stage, model: MagicFuse, teacher: MagicFuse, distill: Distillation
    ) -> None:
        super().__init__(dict(inner.trained.items()), inner.frozen, model)
        self.inner, self.trained_steps = inner, inner.trained_steps
        self.__dict__["_teacher"] = teacher  # not a submodule: it is not trained
        self._freeze({f"teacher_{part}": getattr(teacher, part) for part in teacher.parts})
        self._settings = SamplerSettings.of(
            teacher.config, teacher.labels.thermal_ids(), steps=distill.steps
        )
        self._distill = distill
        if isinstance(inner, BranchStage):
            inner.train_at(_few_steps(model))
        elif teacher.labels.names() != model.labels.names():
            raise ConfigError(
                f"distill.teacher {distill.teacher!r} has the labels {teacher.labels.name!r}, the"
                f" student {model.labels.name!r}; accepted for stage {distill.stage!r}: the same"
            )
        if isinstance(inner, RefineStage) and teacher.refiner is None:
            raise ConfigError(
                f"distill.teacher {distill.teacher!r} has no section `refiner`; accepted for stage "
                "'refine': a model that has one"
            )

    @torch.no_grad()
    def _taught(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with the teacher's outputs as its targets."""
        frame, stage = batch["degraded"], self._distill.stage
        image = shrunk(frame, self.inner.camera) if isinstance(self.inner, RefineStage) else frame
        chance = torch.rand(len(image), generator=generator, device=generator.device)
        taught = (chance.to(image.device) >= self._distill.truth) | ~_is_known(batch, stage)
        given = batch | {TAUGHT: taught}
        condition, noise = starting_point(self._teacher, image, generator)
        teacher = self._teacher
        if stage in {"psi", "phi"}:
            networks = OneBranch(teacher, stage)
            step = sample(networks, condition, noise, teacher.config, self._settings)
            picture = teacher.decoder(step.z0_psi if stage == "psi" else step.z0_phi)
            key = "clean" if stage == "psi" else "infrared"
            return given | _instead(batch, key, picture, taught)
        step = sample(teacher, condition, noise, teacher.config, self._settings)
        size = (image.shape[-2], image.shape[-1])
        logits, maps = step.state, None
        if teacher.refiner is not None:
            latents = (step.z0_psi, step.z0_phi, step.z0_fused)
            maps, logits = teacher.refiner(image, *latents, step.state)
        given[TAUGHT_CLASSES] = enlarged(logits, size).softmax(dim=1)
        if stage == "refine" and maps is not None:
            given[TAUGHT_HEAT] = enlarged(split_maps(maps).heat, size)[:, 0]
            big = split_maps(enlarged(maps, (frame.shape[-2], frame.shape[-1])))
            imagined = infrared_at(frame, big).clamp(0.0, 1.0)
            given |= _instead(batch, "infrared", imagined, taught)
        return given

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the objective of the stage with the teacher's outputs as its targets."""
        loss: tuple[Tensor, dict[str, Tensor]] = self.inner(
            self._taught(batch, generator), generator
        )
        return loss

    def sheet(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Draw as the stage itself does; the targets are the teacher's."""
        return self.inner.sheet(self._taught(batch, generator), generator)


def _few_steps(model: MagicFuse) -> Tensor:
    config = model.config.diffusion
    if config.spacing != "trailing":
        raise ConfigError(
            f"diffusion.spacing of the student is {config.spacing!r}; accepted: 'trailing', as "
            "few steps must begin at pure noise. Change it in its config.json"
        )
    return torch.tensor(diffusion.timesteps(config.steps, config.train_steps, config.spacing))


def _is_known(batch: Batch, stage: str) -> Tensor:
    """Return of which samples the truth is known, (B,) boolean; R learns from whatever there is."""
    if stage == "psi":
        return batch["has_clean"] > 0.0
    if stage == "phi":
        return batch["has_infrared"] > 0.0
    known = (batch["labels"] != UNKNOWN).any(dim=2).any(dim=1)
    return known if stage == "mkf" else torch.ones_like(known)


def _instead(batch: Batch, key: str, picture: Tensor, taught: Tensor) -> Batch:
    """Return the picture in the place of `key` where it is taught; every image has one now."""
    own = batch[key].expand_as(picture)
    there = torch.where(taught, torch.ones_like(batch[f"has_{key}"]), batch[f"has_{key}"])
    return {key: torch.where(taught[:, None, None, None], picture, own), f"has_{key}": there}
