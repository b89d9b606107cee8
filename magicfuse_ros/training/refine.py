"""Phase 3, which the paper has not: R, and S on the same samples, at the camera's size."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.diffusion import Estimate
from magicfuse_ros.model.fusion import is_one_of
from magicfuse_ros.model.labels import UNKNOWN
from magicfuse_ros.model.magicfuse import MagicFuse, upsampled_logits
from magicfuse_ros.model.refiner import Maps, Refiner, enlarged, infrared_at, split_maps
from magicfuse_ros.model.sampler import SamplerSettings, Step, sample
from magicfuse_ros.training.losses import sobel, weighted_l1
from magicfuse_ros.training.semantics import SemanticLoss, SemanticTerms
from magicfuse_ros.training.stage import BOXED, Batch, Stage, outside_boxes, starting_point

CAMERA = 2
"""Camera pixels per pixel of the model's resolution, along each axis, in training."""

# Heat from the first of these levels of the common infrared scale on, all of it from the second.
_WARM, _HOT = 0.3, 0.7


@dataclass(frozen=True, kw_only=True)
class RefineLoss(SemanticLoss):
    """The objective of R, and of S beside it.

    Attributes
    ----------
    infrared, infrared_texture
        Weights of the infrared's absolute error, and of that of its Sobel gradient.
    thermal
        Extra weight of the infrared's pixels inside boxes of thermal objects.
    heat
        Weight of the cross-entropy of the heat map with how warm people and vehicles are.
    objects
        Extra weight of that inside people and vehicles.
    segmentation, absence, class_weights
        Of S, as in phase 2; with a `segmentation` of 0 F and S are left as they are.
    drift
        Weight of how far the fusion weight w moves away from that of the F it began with, so that
        D(z0_f) stays the paper's fusion.
    """

    infrared: float = 4.0
    infrared_texture: float = 1.0
    thermal: float = 8.0
    heat: float = 3.0
    objects: float = 2.0
    drift: float = 1.0


class _Streams:
    """The sampler's networks: gradients for F and S alone, and how far w has moved.

    Attributes
    ----------
    drift
        Mean absolute difference of w from that of the F that is kept.
    """

    def __init__(self, model: MagicFuse, kept: nn.Module) -> None:
        self._model, self._kept = model, kept
        self.drift: Tensor = torch.zeros(())

    def denoise(
        self, condition: Tensor, z_psi: Tensor, z_phi: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self._model.denoise(condition, z_psi, z_phi, t)

    def fuse(
        self, psi: Estimate, phi: Estimate, z_f: Tensor, state: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        w, following = self._model.fuse(psi, phi, z_f, state, t)
        if w.requires_grad:
            step = torch.tensor([t], device=z_f.device)
            with torch.no_grad():
                was, _ = self._kept(psi.z0, phi.z0, z_f, psi.eps, phi.eps, state, step)
            self.drift = (w - was).abs().mean()
        return w, following


class RefineStage(Stage):
    """Trains R, and F & S further, with E, Ψ and Φ frozen.

    Raises
    ------
    ConfigError
        The model has no R, or the class weights are not as many as its classes.
    """

    def __init__(self, model: MagicFuse, loss: RefineLoss) -> None:
        if model.refiner is None:
            raise ConfigError(
                f"stage is 'refine', but model {model.config.name!r} has no section `refiner`; "
                "accepted: a size that has one, such as 'tiny'"
            )
        if not model.refiner.maps.weight.any():  # it is new
            model.refiner.begin_with(model.decoder)
        frozen: dict[str, nn.Module] = {
            part: getattr(model, part) for part in ("encoder", "decoder", "psi", "phi")
        }
        trained: dict[str, nn.Module] = {"refiner": model.refiner}
        if loss.segmentation:
            trained["fusion"], frozen["kept"] = model.fusion, copy.deepcopy(model.fusion)
        else:
            frozen["fusion"] = model.fusion
        super().__init__(trained, frozen)
        self.__dict__["_model"] = model
        self._loss = loss
        self.trained_steps = (model.config.diffusion.steps,)
        self._settings = SamplerSettings.of(model.config, model.labels.thermal_ids())
        self._objects = tuple(label.id for label in model.labels.labels if label.name in BOXED)
        self._semantics = SemanticTerms(model.labels, loss, "refine")

    _model: MagicFuse

    def _sample(self, image: Tensor, generator: torch.Generator) -> tuple[Step, Tensor]:
        condition, noise = starting_point(self._model, image, generator)
        with torch.set_grad_enabled(bool(self._loss.segmentation) and torch.is_grad_enabled()):
            streams = _Streams(self._model, self.frozen.get("kept", self._model.fusion))
            step = sample(streams, condition, noise, self._model.config, self._settings)
        return step, streams.drift

    def _refine(self, image: Tensor, step: Step) -> Tensor:
        refiner: Refiner = self.trained["refiner"]  # type: ignore[assignment]
        latents = (step.z0_psi, step.z0_phi, step.z0_fused)
        maps: Tensor = refiner(image, *(each.detach() for each in latents), step.state.detach())
        return maps

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the terms, and the terms to log."""
        loss, frame = self._loss, batch["degraded"]
        image = _shrunk(frame)
        step, drift = self._sample(image, generator)
        maps = self._refine(image, step)
        at_camera = split_maps(enlarged(maps, (frame.shape[-2], frame.shape[-1])))
        terms = self._infrared(frame, at_camera, batch)
        small = {
            **batch,
            "labels": batch["labels"][:, ::CAMERA, ::CAMERA],
            "thermal_weight": batch["thermal_weight"][:, ::CAMERA, ::CAMERA],
            "infrared": _shrunk(batch["infrared"]),
        }
        terms["heat"] = self._heat(maps[:, -1:], small)
        if loss.segmentation:
            logits = upsampled_logits(step.state, small["labels"].shape[-2:])
            terms |= self._semantics(logits, small) | {"drift": drift}
        weighted = [getattr(loss, name) * value for name, value in terms.items()]
        return torch.stack(weighted).sum(), {k: value.detach() for k, value in terms.items()}

    def _infrared(self, frame: Tensor, maps: Maps, batch: Batch) -> dict[str, Tensor]:
        weight = 1.0 + self._loss.thermal * batch["thermal_weight"][:, None]
        weight = weight * batch["has_infrared"][:, None, None, None]
        imagined, real = infrared_at(frame, maps), batch["infrared"]
        return {
            "infrared": weighted_l1(imagined, real, weight),
            "infrared_texture": weighted_l1(sobel(imagined), sobel(real), weight),
        }

    def _heat(self, logit: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of the heat map with how warm known people and vehicles are."""
        labels, warmth = batch["labels"], batch["infrared"][:, 0]
        objects = is_one_of(labels, self._objects)
        target = ((warmth - _WARM) / (_HOT - _WARM)).clamp(0.0, 1.0) * objects
        # Without an infrared picture it is known what is cold, but not what is warm.
        known = (labels != UNKNOWN) | outside_boxes(batch)
        known = known & (~objects | (batch["has_infrared"][:, None, None] > 0.0))
        weight = known * (1.0 + self._loss.objects * objects)
        losses = functional.binary_cross_entropy_with_logits(logit[:, 0], target, reduction="none")
        return (losses * weight).sum() / weight.sum().clamp(min=1.0)

    def sheet(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Draw frames, imagined infrared, heat and the real infrared, from top to bottom."""
        frame = batch["degraded"][:4]
        image = _shrunk(frame)
        maps = self._refine(image, self._sample(image, generator)[0])
        big = split_maps(enlarged(maps, (frame.shape[-2], frame.shape[-1])))
        grey = (infrared_at(frame, big), big.heat, batch["infrared"][:4])
        rows = torch.cat([frame, *(each.expand(-1, 3, -1, -1) for each in grey)], dim=2)
        return torch.cat(list(rows.clamp(0.0, 1.0)), dim=2)


def _shrunk(image: Tensor) -> Tensor:
    """Shrink as a runtime does before it fuses: by areas, to whole grey levels."""
    return functional.avg_pool2d(image, CAMERA).mul(255.0).round().div(255.0)
