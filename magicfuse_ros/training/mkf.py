"""Phase 2: F and S on the frozen diffusion streams (paper, Algorithm 1, Eq. 15 and 16)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from magicfuse_ros.model.diffusion import Estimate
from magicfuse_ros.model.fusion import is_one_of
from magicfuse_ros.model.labels import UNKNOWN
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.partial import Unaided
from magicfuse_ros.model.refiner import enlarged
from magicfuse_ros.model.sampler import Networks, SamplerSettings, Step, sample
from magicfuse_ros.training.losses import visual_loss
from magicfuse_ros.training.semantics import SemanticLoss, SemanticTerms
from magicfuse_ros.training.stage import Batch, Stage, outside_boxes, starting_point


@dataclass(frozen=True, kw_only=True)
class MkfLoss(SemanticLoss):
    """The objective of phase 2; the defaults are the paper's."""

    # Weights of Eq. 15's terms.
    contrast: float = 6.0
    texture: float = 10.0
    color: float = 5.0
    # Extra weight of Eq. 15's contrast inside boxes of thermal objects. They are a percent of the
    # pixels, and the only ones where infrared is brighter than the picture.
    thermal: float = 0.0
    # Ask for infrared, in Eq. 15's contrast and texture, only where labels and boxes leave open
    # that something thermal is there. Φ imagines heat where nobody is; this teaches F which of it
    # to believe.
    cold: bool = False
    steps: int = 0  # DDIM steps of the reverse process; 0 takes the model's
    # Train F and S with the condition latent in the place of both branches' estimates: the baseline
    # that shows what Ψ and Φ are worth to S.
    unaided: bool = False


class _Streams:
    """The networks of the sampler, with gradients where Algorithm 1 has them.

    Ψ and Φ never have one, F and S only at the stop step (line 12).
    """

    def __init__(self, networks: Networks, stop: int) -> None:
        self._networks = networks
        self._stop = stop

    def denoise(
        self, condition: Tensor, z_psi: Tensor, z_phi: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self._networks.denoise(condition, z_psi, z_phi, t)

    def fuse(
        self, psi: Estimate, phi: Estimate, z_f: Tensor, state: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(t == self._stop and torch.is_grad_enabled()):
            return self._networks.fuse(psi, phi, z_f, state, t)


class MkfStage(Stage):
    """Trains F and S with Ψ, Φ, E and D frozen."""

    def __init__(self, model: MagicFuse, loss: MkfLoss) -> None:
        frozen = {part: getattr(model, part) for part in ("encoder", "decoder", "psi", "phi")}
        super().__init__({"fusion": model.fusion}, frozen, model)
        self._loss = loss
        self.trained_steps = (loss.steps or model.config.diffusion.steps,)
        self._thermal_ids = model.labels.thermal_ids()
        self._settings = SamplerSettings.of(
            model.config, self._thermal_ids, steps=loss.steps or None
        )
        self._semantics = SemanticTerms(model.labels, loss, "mkf")

    def _run(self, image: Tensor, generator: torch.Generator, *, to_end: bool) -> Step:
        """Sample down to a random stop step (lines 6-17), or to the end."""
        model = self._model
        stop = len(self._settings.timesteps) - 1
        if not to_end and stop:
            device = generator.device
            stop = int(torch.randint(0, stop + 1, (1,), generator=generator, device=device))
        settings = replace(self._settings, timesteps=self._settings.timesteps[: stop + 1])
        condition, noise = starting_point(model, image, generator)
        networks: Networks = Unaided(model) if self._loss.unaided else model
        streams = _Streams(networks, settings.timesteps[-1])
        return sample(streams, condition, noise, model.config, settings)

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the terms of Eq. 15 and 16, and scalars to log.

        Those are the terms, and the mean and spread of w_r inside and outside of thermal regions:
        where w_r goes to 1 everywhere, the infrared is ignored.
        """
        step = self._run(batch["degraded"], generator, to_end=False)
        decoder, weights = self.frozen["decoder"], self._loss
        with torch.no_grad():
            enhanced, infrared = decoder(step.z0_psi), decoder(step.z0_phi)
        weight = 1.0 + weights.thermal * batch["thermal_weight"][:, None]
        cold = self._cold(batch) if weights.cold else None
        terms = visual_loss(decoder(step.z0_fused), enhanced, infrared, weight, cold)
        height, width = batch["labels"].shape[-2:]
        logits = enlarged(step.state, (height, width))
        terms |= self._semantics(logits, batch)
        loss = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
        scalars = {name: value.detach() for name, value in terms.items()}
        inside = step.radiation.expand_as(step.w_r) > 0
        for name, region in (("inside", inside), ("outside", ~inside)):
            if bool(region.any()):
                values = step.w_r.detach()[region]
                scalars |= {f"w_r/{name}": values.mean(), f"w_r/{name}_std": values.std()}
        return loss, scalars

    def _cold(self, batch: Batch) -> Tensor:
        """Return where nothing thermal is known to be, (B, 1, H, W) boolean."""
        labels = batch["labels"]
        known = outside_boxes(batch) | (labels != UNKNOWN)
        return (known & ~is_one_of(labels, self._thermal_ids))[:, None]

    def sheet(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Draw degraded inputs, restored, imagined infrared and MagImg, from top to bottom."""
        image = batch["degraded"][:8]
        step = self._run(image, generator, to_end=True)
        latents = (step.z0_psi, step.z0_phi, step.z0_fused)
        decoded = [self.frozen["decoder"](latent) for latent in latents]
        return torch.cat(list(torch.cat([image, *decoded], dim=2)), dim=2)
