"""Phase 1, the diffusion branches (Eq. 7).

Ψ learns degraded → clean visible, Φ degraded visible → clean infrared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from magicfuse_ros.model import diffusion
from magicfuse_ros.model.config_values import require_share
from magicfuse_ros.model.labels import UNKNOWN, LabelSet
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.partial import Branch
from magicfuse_ros.training.losses import sobel, weighted_l1
from magicfuse_ros.training.stage import Batch, Stage, encode, outside_boxes

_HEAD = "objects"
_RING = 6  # pixels
_RARE = 8.0  # weight of pixels of an object: they are a percent


@dataclass(frozen=True, kw_only=True)
class BranchLoss:
    """The objective of a branch."""

    # Share of samples trained at the timestep T − 1, where few-step sampling begins; the rest is
    # uniform over T, or in distillation over the student's timesteps. 0 is Eq. 7.
    pure_noise_share: float = 0.0
    # Weight of the error of what the network predicts: squared for ε and v (Eq. 7), absolute for
    # z0.
    latent: float = 1.0
    # Weights of the absolute error of the decoded z0 estimate, and of its Sobel gradient; 0 for
    # both leaves D out of the step.
    pixel: float = 0.0
    texture: float = 0.0
    # Extra weight of pixels inside boxes of thermal objects, which are a percent of the pixels.
    thermal: float = 0.0
    # Share of that weight for the 6 pixels around the boxes: without it a network is paid to glow
    # wherever somebody might be.
    ring: float = 0.0
    # How much heavier the pixel error weighs inside the boxes of people where the estimate is
    # darker than the target. An absolute error asks for the median: who is as likely background as
    # hot is shown as background.
    colder: float = 0.0
    # Weight of telling people, cars and bikes apart by a linear head on the network's last
    # features, on what boxes know of them; the head is left out of the weights.
    objects: float = 0.0

    def __post_init__(self) -> None:
        require_share(self, "branch", "pure_noise_share")


class ObjectsHead(nn.Module):
    """Says from a branch's last features which boxed object is where: a reason to know it.

    It hears the input of the branch's last convolution, and tells people, cars and bikes apart.
    """

    def __init__(self, branch: nn.Module, labels: LabelSet) -> None:
        super().__init__()
        last = branch.get_submodule("unet.conv_out")
        self._ids = list(labels.object_ids())
        self.head = nn.Conv2d(cast("nn.Conv2d", last).in_channels, len(self._ids), 1)
        self._heard: Tensor | None = None
        last.register_forward_pre_hook(self._hear)

    def _hear(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._heard = inputs[0]

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of each class against the rest, where it is known."""
        if self._heard is None:
            raise RuntimeError("ObjectsHead needs a pass of its branch before its own")
        logits = self.head(self._heard)
        self._heard = None
        labels, size = batch["labels"][:, None], logits.shape[-2:]
        # What no box holds is no object, in an image whose objects have boxes.
        known = (labels != UNKNOWN) | outside_boxes(batch)[:, None]
        weight = functional.adaptive_avg_pool2d(known.float(), size)
        target = torch.cat([labels == i for i in self._ids], dim=1).float()
        target = functional.adaptive_avg_pool2d(target, size) / weight.clamp(min=1e-6)
        losses = functional.binary_cross_entropy_with_logits(
            logits, target.clamp(max=1.0), reduction="none", pos_weight=logits.new_tensor(_RARE)
        )
        return (losses * weight).sum() / (weight.sum() * len(self._ids)).clamp(min=1.0)


class BranchStage(Stage):
    """Trains Ψ or Φ with E and D frozen."""

    def __init__(self, model: MagicFuse, branch: Branch, loss: BranchLoss) -> None:
        frozen = {"encoder": model.encoder, "decoder": model.decoder}
        trained: dict[str, nn.Module] = {branch: getattr(model, branch)}
        if loss.objects:
            trained[_HEAD] = ObjectsHead(trained[branch], model.labels)
        super().__init__(trained, frozen, model)
        self._branch = branch
        self._loss = loss
        self._alpha_bars = torch.tensor(diffusion.alphas_cumprod(model.config.diffusion))
        self._schedule = torch.arange(model.config.diffusion.train_steps)
        branch_config = model.config.psi if branch == "psi" else model.config.phi
        self._prediction = branch_config.prediction

    def _target_image(self, batch: Batch) -> Tensor:
        return batch["clean"] if self._branch == "psi" else batch["infrared"].expand(-1, 3, -1, -1)

    def _estimate(
        self, batch: Batch, t: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the prediction, its target, and the z0 estimate."""
        kind = self._prediction
        condition = encode(self._model, batch["degraded"], generator)
        z0 = encode(self._model, self._target_image(batch), generator)
        eps = torch.randn(z0.shape, generator=generator, device=generator.device).to(z0.device)
        a, s = diffusion.training_coefficients(self._alpha_bars.to(z0.device), t.to(z0.device))
        z_t = diffusion.add_noise(z0, eps, a, s)
        gain = diffusion.input_gain(a, self._model.config.diffusion)
        prediction = self.trained[self._branch](condition, gain * z_t, t.to(z0.device))
        estimate = diffusion.clean_estimate(prediction, z_t, a, s, kind)
        return prediction, diffusion.training_target(z0, eps, a, s, kind), estimate

    def train_at(self, timesteps: Tensor) -> None:
        """Train at these timesteps (n,) alone."""
        self._schedule = timesteps

    def _timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        last = self._model.config.diffusion.train_steps - 1
        device, schedule = generator.device, self._schedule.to(generator.device)
        chosen = torch.randint(0, len(schedule), (count,), generator=generator, device=device)
        t = schedule[chosen]
        pure = torch.rand(count, generator=generator, device=device) < self._loss.pure_noise_share
        return torch.where(pure, torch.full_like(t, last), t)

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted objective, and its terms to log."""
        weights = self._loss
        t = self._timesteps(len(batch["degraded"]), generator)
        prediction, target, estimate = self._estimate(batch, t, generator)
        stride = self._model.config.autoencoder.stride
        thermal = batch["thermal_weight"][:, None]
        if weights.ring:
            around = functional.max_pool2d(thermal, 2 * _RING + 1, stride=1, padding=_RING)
            thermal = torch.maximum(thermal, weights.ring * around)
        pixel_weight = 1.0 + weights.thermal * thermal
        if self._branch == "phi":  # images without infrared are there for the objects alone
            pixel_weight = pixel_weight * batch["has_infrared"][:, None, None, None]
        latent_weight = functional.avg_pool2d(pixel_weight, stride)
        if self._prediction == "z0":
            latent = weighted_l1(prediction, target, latent_weight)
        else:
            error = ((prediction - target) ** 2 * latent_weight).mean()
            latent = error / latent_weight.mean().clamp(min=1e-6)
        loss, scalars = weights.latent * latent, {"latent": latent.detach()}
        if weights.pixel or weights.texture:
            decoded, image = self.frozen["decoder"](estimate), self._target_image(batch)
            people = batch["thermal_weight"][:, None] == 1.0
            missed = weights.colder * (people & (decoded < image)).float()
            asked = pixel_weight * (1.0 + missed.mean(dim=1, keepdim=True))
            pixel = weighted_l1(decoded, image, asked)
            texture = weighted_l1(sobel(decoded), sobel(image), pixel_weight)
            loss = loss + weights.pixel * pixel + weights.texture * texture
            scalars |= {"pixel": pixel.detach(), "texture": texture.detach()}
        if weights.objects:
            objects = self.trained[_HEAD](batch)
            loss = loss + weights.objects * objects
            scalars["objects"] = objects.detach()
        return loss, scalars

    def sheet(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Draw degraded inputs, estimates from pure noise, and targets, from top to bottom."""
        batch = {key: value[:8] for key, value in batch.items()}
        t = torch.full((len(batch["degraded"]),), self._model.config.diffusion.train_steps - 1)
        estimate = self.frozen["decoder"](self._estimate(batch, t, generator)[2])
        rows = torch.cat([batch["degraded"], estimate, self._target_image(batch)], dim=2)
        return torch.cat(list(rows), dim=2)
