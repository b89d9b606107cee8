"""Phase 1, first stage: E and D reconstruct visible, degraded and infrared images."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.training.stage import Batch, Stage, encoder_noise

_ANCHOR = "anchor"


@dataclass(frozen=True, kw_only=True)
class AutoencoderLoss:
    """Weights of the reconstruction loss."""

    # Weights of mean |x̂ − x| and of mean (x̂ − x)².
    l1: float = 1.0
    squared: float = 5.0
    # Standard deviation of Gaussian noise added to the latent before D. It makes E use the whole of
    # [-1, 1] and D forgive the small errors that Ψ and Φ make.
    latent_noise: float = 0.01
    # Weight of mean (z − z′)², with z′ the latent of the E that training began with, which Ψ, Φ, F
    # and S have learnt. Above 0 training goes on from the model's E and D; at 0 it begins anew,
    # from PCA where they have a linear path.
    anchor: float = 0.0


class AutoencoderStage(Stage):
    """Trains E and D on clean visible and infrared crops, and on half as many degraded ones."""

    def __init__(self, model: MagicFuse, loss: AutoencoderLoss) -> None:
        trained: dict[str, nn.Module] = {"encoder": model.encoder, "decoder": model.decoder}
        if loss.anchor:
            # Among the trained, so that checkpoints hold it: the model's own changes.
            trained[_ANCHOR] = copy.deepcopy(model.encoder).requires_grad_(requires_grad=False)
        super().__init__(trained, {}, model)
        self._loss = loss

    def _images(self, batch: Batch) -> Tensor:
        infrared = batch["infrared"][batch["has_infrared"] > 0].expand(-1, 3, -1, -1)
        images = torch.cat([batch["clean"], batch["degraded"][::2], infrared])
        return images.contiguous(memory_format=torch.channels_last)

    def _reconstruct(
        self, images: Tensor, noise: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        latent = self._model.encoder(images, noise)
        jitter = torch.randn(latent.shape, generator=generator, device=generator.device)
        return latent, self._model.decoder(
            latent + self._loss.latent_noise * jitter.to(latent.device)
        )

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted errors of the reconstruction and of the anchor, and scalars to log.

        Those are the PSNR in dB, the latent's spread, and how far it is from the anchor's, as a
        share of the spread.
        """
        images = self._images(batch)
        noise = encoder_noise(self._model, images, generator)
        latent, output = self._reconstruct(images, noise, generator)
        squared = functional.mse_loss(output, images)
        loss = self._loss.l1 * functional.l1_loss(output, images) + self._loss.squared * squared
        spread = latent.detach().std()
        scalars = {"psnr_db": -10.0 * torch.log10(squared.detach()), "latent/std": spread}
        if self._loss.anchor:
            with torch.no_grad():
                before = self.trained[_ANCHOR](images, noise)
            drift = functional.mse_loss(latent, before)
            loss = loss + self._loss.anchor * drift
            scalars["latent/drift"] = drift.detach().sqrt() / spread
        return loss, scalars

    def sheet(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Draw the inputs above, reconstructions below."""
        images = self._images(batch)[::2][:8]
        noise = encoder_noise(self._model, images, generator)
        rows = torch.cat([images, self._reconstruct(images, noise, generator)[1]], dim=2)
        return torch.cat(list(rows), dim=2)
