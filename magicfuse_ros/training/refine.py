"""Phase 3, which the paper has not: R, at the camera's size, on what the others make."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from magicfuse_ros.model.checkpoint import PARTS, REFINER
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.fusion import is_one_of
from magicfuse_ros.model.labels import UNKNOWN, LabelSet
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.refiner import Maps, Refiner, enlarged, infrared_at, split_maps
from magicfuse_ros.model.sampler import SamplerSettings, sample
from magicfuse_ros.training.losses import sobel, weighted_l1
from magicfuse_ros.training.semantics import TAUGHT, TAUGHT_HEAT, SemanticLoss, SemanticTerms
from magicfuse_ros.training.stage import Batch, Stage, outside_boxes, starting_point

# Heat from the first of these levels of the common infrared scale on, all of it from the second.
_WARM, _HOT = 0.3, 0.7
# Heat nearer to 0 or 1 is as good as there, and asks for no more.
_LEAST = 1e-4


@dataclass(frozen=True, kw_only=True)
class RefineLoss(SemanticLoss):
    """The objective of R.

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
        Of R's own classes, as in phase 2.
    """

    infrared: float = 4.0
    infrared_texture: float = 1.0
    thermal: float = 8.0
    heat: float = 3.0
    objects: float = 2.0


class RefineStage(Stage):
    """Trains R, with the others frozen; or its classes of another label set, and nothing else.

    Parameters
    ----------
    labels
        One of the `more_labels` of R; empty trains all but those.

    Raises
    ------
    ConfigError
        The model has no R, or the class weights are not as many as its classes.
    """

    def __init__(self, model: MagicFuse, loss: RefineLoss, labels: str = "") -> None:
        if model.refiner is None:
            raise ConfigError(
                f"stage is 'refine', but model {model.config.name!r} has no section `refiner`; "
                "accepted: a size that has one, such as 'tiny'"
            )
        if model.refiner.is_new:
            model.refiner.begin_with(model.decoder)
        frozen: dict[str, nn.Module] = {part: getattr(model, part) for part in PARTS}
        super().__init__({REFINER: model.refiner}, frozen)
        self._classes_alone = bool(labels)
        self.pretrained = (model.refiner.trunk,)
        model.refiner.requires_grad_(requires_grad=not labels)
        model.refiner.more_classes.requires_grad_(requires_grad=bool(labels))
        self.__dict__["_model"] = model.with_classes_of(labels) if labels else model
        shown = LabelSet.load(labels) if labels else model.labels
        self._loss, self.camera = loss, model.refiner.config.camera
        self.trained_steps = (model.config.diffusion.steps,)
        self._settings = SamplerSettings.of(model.config, model.labels.thermal_ids())
        self._objects = shown.object_ids()
        self._semantics = SemanticTerms(shown, loss, "refine")

    _model: MagicFuse

    def _refine(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        condition, noise = starting_point(self._model, image, generator)
        with torch.no_grad():
            step = sample(self._model, condition, noise, self._model.config, self._settings)
        refiner: Refiner = self._model.refiner  # type: ignore[assignment]
        # Its own classes, without those of S, which is surer of the pictures it learned from than
        # of others: R would learn to add nothing.
        own = torch.zeros_like(step.state)
        maps, logits = refiner(image, step.z0_psi, step.z0_phi, step.z0_fused, own)
        return maps, logits

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the terms, and the terms to log."""
        loss, frame = self._loss, batch["degraded"]
        camera = self.camera
        image = shrunk(frame, camera)
        maps, logits = self._refine(image, generator)
        size = (image.shape[-2], image.shape[-1])
        small = {
            **batch,
            "labels": batch["labels"][:, ::camera, ::camera],
            "thermal_weight": batch["thermal_weight"][:, ::camera, ::camera],
            "infrared": shrunk(batch["infrared"], camera),
        }
        terms = self._semantics(enlarged(logits, size), small)
        if not self._classes_alone:
            at_camera = split_maps(enlarged(maps, (frame.shape[-2], frame.shape[-1])))
            terms |= self._infrared(frame, at_camera, batch)
            terms["heat"] = self._heat(enlarged(maps[:, -1:], size), small)
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

    def _heat(self, found: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of the heat map with how warm known people and vehicles are."""
        labels, warmth = batch["labels"], batch["infrared"][:, 0]
        objects = is_one_of(labels, self._objects)
        target = ((warmth - _WARM) / (_HOT - _WARM)).clamp(0.0, 1.0) * objects
        # Without an infrared picture it is known what is cold, but not what is warm.
        known = (labels != UNKNOWN) | outside_boxes(batch)
        recorded = batch["has_infrared"][:, None, None] > 0.0
        known = (known & ~objects) | (recorded & (known | (warmth < _WARM)))
        weight = known * (1.0 + self._loss.objects * objects)
        if TAUGHT_HEAT in batch:
            taught, heat = batch[TAUGHT][:, None, None], batch[TAUGHT_HEAT]
            target = torch.where(taught, heat, target)
            weight = torch.where(taught, 1.0 + self._loss.objects * heat, weight)
        sure = found[:, 0].float().clamp(_LEAST, 1.0 - _LEAST)
        losses = -(target * sure.log() + (1.0 - target) * torch.log1p(-sure))
        return (losses * weight).sum() / weight.sum().clamp(min=1.0)

    def sheet(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Draw frames, imagined infrared, heat and the real infrared, from top to bottom."""
        frame = batch["degraded"][:4]
        maps, _ = self._refine(shrunk(frame, self.camera), generator)
        big = split_maps(enlarged(maps, (frame.shape[-2], frame.shape[-1])))
        grey = (infrared_at(frame, big), big.heat, batch["infrared"][:4])
        rows = torch.cat([frame, *(each.expand(-1, 3, -1, -1) for each in grey)], dim=2)
        return torch.cat(list(rows.clamp(0.0, 1.0)), dim=2)


def shrunk(image: Tensor, camera: int) -> Tensor:
    """Shrink a frame `camera` times, as a runtime does: by areas, to whole grey levels."""
    return functional.avg_pool2d(image, camera).mul(255.0).round().div(255.0)
