"""Phase 1, first stage: E and D reconstruct visible, degraded and infrared images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.training.stage import Batch, Stage


@dataclass(frozen=True, kw_only=True)
class AutoencoderLoss:
    """Weights of the reconstruction loss.

    Attributes
    ----------
    l1, squared
        Weights of mean |x̂ − x| and of mean (x̂ − x)².
    latent_noise
        Standard deviation of Gaussian noise added to the latent before D. It makes E use the whole
        of [-1, 1] and D forgive the small errors that Ψ and Φ make.
    freeze_encoder
        Train D alone: what Ψ, Φ, F and S have learnt of E's latents stays true.
    """

    l1: float = 1.0
    squared: float = 5.0
    latent_noise: float = 0.01
    freeze_encoder: bool = False


class AutoencoderStage(Stage):
    """Trains E and D on what they will meet.

    That is clean visible and infrared crops, and half as many degraded ones.
    """

    def __init__(self, model: MagicFuse, loss: AutoencoderLoss) -> None:
        trained: dict[str, nn.Module] = {"encoder": model.encoder, "decoder": model.decoder}
        frozen = {"encoder": trained.pop("encoder")} if loss.freeze_encoder else {}
        super().__init__(trained, frozen)
        self._loss = loss
        self.__dict__["_model"] = model  # not a submodule: only E and D are trained

    _model: MagicFuse

    def _images(self, batch: Batch) -> Tensor:
        infrared = batch["infrared"][batch["has_infrared"] > 0].expand(-1, 3, -1, -1)
        images = torch.cat([batch["clean"], batch["degraded"][::2], infrared])
        return images.contiguous(memory_format=torch.channels_last)

    def _reconstruct(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        encoder, decoder = self._model.encoder, self._model.decoder
        height, width = images.shape[-2:]
        noise = self._model.draw_encoder_noise(height, width, generator, len(images))
        latent = encoder(images, None if noise is None else noise.to(images.device))
        jitter = torch.randn(latent.shape, generator=generator).to(latent.device)
        return latent, decoder(latent + self._loss.latent_noise * jitter)

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 and squared reconstruction error; logs PSNR in dB and the latent's spread."""
        images = self._images(batch)
        latent, output = self._reconstruct(images, generator)
        squared = functional.mse_loss(output, images)
        loss = self._loss.l1 * functional.l1_loss(output, images) + self._loss.squared * squared
        psnr_db = -10.0 * torch.log10(squared.detach())
        return loss, {"psnr_db": psnr_db, "latent/std": latent.detach().std()}

    def sheet(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Draw the inputs above, reconstructions below."""
        images = self._images(batch)[::2][:8]
        rows = torch.cat([images, self._reconstruct(images, generator)[1]], dim=2)
        return torch.cat(list(rows), dim=2)
