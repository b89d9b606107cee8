"""Phase 2: F and S on the frozen diffusion streams (paper, Algorithm 1, Eq. 15 and 16)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from magicfuse_ros.model.diffusion import Estimate
from magicfuse_ros.model.labels import UNKNOWN
from magicfuse_ros.model.magicfuse import MagicFuse, upsampled_logits
from magicfuse_ros.model.sampler import SamplerSettings, Step, sample
from magicfuse_ros.training.loop import Batch, Stage
from magicfuse_ros.training.losses import visual_loss


@dataclass(frozen=True, kw_only=True)
class MkfLoss:
    """The objective of phase 2; the defaults are the paper's.

    Attributes
    ----------
    contrast, texture, color
        Weights of Eq. 15's terms.
    segmentation
        Weight of Eq. 16.
    class_weights
        Cross-entropy weight of each class in the order of the label set's ids; empty weighs all alike.
    steps
        DDIM steps of the reverse process; 0 takes the model's.
    """

    contrast: float = 6.0
    texture: float = 10.0
    color: float = 5.0
    segmentation: float = 1.0
    class_weights: tuple[float, ...] = ()
    steps: int = 0


class _Streams:
    """The networks of the sampler: Ψ and Φ never with a gradient, F and S only at the stop step (line 12)."""

    def __init__(self, model: MagicFuse, stop: int) -> None:
        self._model = model
        self._stop = stop

    def denoise(self, condition: Tensor, z_psi: Tensor, z_phi: Tensor, t: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self._model.denoise(condition, z_psi, z_phi, t)

    def restore(self, condition: Tensor, z_psi: Tensor, t: int) -> Tensor:
        with torch.no_grad():
            return self._model.restore(condition, z_psi, t)

    def fuse(self, psi: Estimate, phi: Estimate, z_f: Tensor, state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(t == self._stop and torch.is_grad_enabled()):
            return self._model.fuse(psi, phi, z_f, state, t)


class MkfStage(Stage):
    """Trains F and S with Ψ, Φ, E and D frozen."""

    def __init__(self, model: MagicFuse, loss: MkfLoss) -> None:
        frozen = {part: getattr(model, part) for part in ("encoder", "decoder", "psi", "phi")}
        super().__init__({"fusion": model.fusion}, frozen)
        self.__dict__["_model"] = model
        self._loss = loss
        self._thermal_ids = model.labels.thermal_ids()
        weights = loss.class_weights or (1.0,) * len(model.labels)
        if len(weights) != len(model.labels):
            raise ValueError(
                f"loss.class_weights has {len(weights)} entries; the label set {model.labels.name!r} has {len(model.labels)}"
            )
        self.register_buffer("_class_weights", torch.tensor(weights), persistent=False)

    _model: MagicFuse
    _class_weights: Tensor

    def _run(self, image: Tensor, generator: torch.Generator, *, to_end: bool) -> Step:
        """Sample down to a random stop step (lines 6-17), or to the end."""
        model = self._model
        settings = SamplerSettings.of(model.config, self._thermal_ids, steps=self._loss.steps or None)
        stop = len(settings.timesteps) - 1
        if not to_end:
            stop = int(torch.randint(0, stop + 1, (1,), generator=generator))
        settings = SamplerSettings(
            timesteps=settings.timesteps[: stop + 1], tau=settings.tau, thermal_ids=settings.thermal_ids
        )
        height, width = image.shape[-2:]
        noise = model.draw_noise(height, width, generator, len(image))
        encoder_noise = model.draw_encoder_noise(height, width, generator, len(image))
        with torch.no_grad():
            condition = model.encoder(
                image.contiguous(memory_format=torch.channels_last),
                None if encoder_noise is None else encoder_noise.to(image.device),
            )
        noise = noise._replace(latent=noise.latent.to(image.device), state=noise.state.to(image.device))
        return sample(_Streams(model, settings.timesteps[-1]), condition, noise, model.config, settings)

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 15 and 16; logs every term, and w_r inside and outside thermal regions (a collapse is w_r → 1)."""
        step = self._run(batch["degraded"], generator, to_end=False)
        decoder, weights = self.frozen["decoder"], self._loss
        with torch.no_grad():
            enhanced, infrared = decoder(step.z0_psi), decoder(step.z0_phi)
        terms = visual_loss(decoder(step.z0_fused), enhanced, infrared)
        labels = batch["labels"]
        logits = upsampled_logits(step.state, labels.shape[-2:])
        losses = functional.cross_entropy(
            logits, labels, self._class_weights, ignore_index=UNKNOWN, reduction="none"
        )
        known = labels != UNKNOWN
        weight = self._class_weights[labels.clamp(max=len(self._class_weights) - 1)] * known
        terms["segmentation"] = losses.sum() / weight.sum().clamp(min=1.0)
        loss = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
        scalars = {name: value.detach() for name, value in terms.items()}
        inside = step.radiation.expand_as(step.w_r) > 0
        for name, region in (("inside", inside), ("outside", ~inside)):
            if bool(region.any()):
                scalars[f"w_r/{name}"] = step.w_r.detach()[region].mean()
        return loss, scalars

    def sheet(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Degraded input, restored, imagined infrared and MagImg."""
        image = batch["degraded"][:8]
        step = self._run(image, generator, to_end=True)
        decoded = [self.frozen["decoder"](latent) for latent in (step.z0_psi, step.z0_phi, step.z0_fused)]
        return torch.cat(list(torch.cat([image, *decoded], dim=2)), dim=2)
