"""Phase 1, first stage: E and D reconstruct visible, degraded and infrared images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.training.loop import Batch, Stage


@dataclass(frozen=True, kw_only=True)
class AutoencoderLoss:
    """Weights of the reconstruction loss.

    Attributes
    ----------
    l1, squared
        Weights of mean |x̂ − x| and of mean (x̂ − x)².
    latent_noise
        Standard deviation of Gaussian noise added to the latent before D. It makes E use the whole of [-1, 1] and D forgive
        the small errors that Ψ and Φ make.
    """

    l1: float = 1.0
    squared: float = 5.0
    latent_noise: float = 0.01


class AutoencoderStage(Stage):
    """Trains E and D on what they will meet: clean visible and infrared crops, and half as many degraded ones."""

    def __init__(self, model: MagicFuse, loss: AutoencoderLoss) -> None:
        super().__init__({"encoder": model.encoder, "decoder": model.decoder}, {})
        self._loss = loss
        self._noise_channels = model.config.autoencoder.noise_channels

    def _images(self, batch: Batch) -> Tensor:
        infrared = batch["infrared"][batch["has_infrared"] > 0].expand(-1, 3, -1, -1)
        return torch.cat([batch["clean"], batch["degraded"][::2], infrared]).contiguous(memory_format=torch.channels_last)

    def _reconstruct(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        encoder, decoder = self.trained["encoder"], self.trained["decoder"]
        noise = None
        if self._noise_channels:
            stride = encoder.config.stride
            size = (len(images), self._noise_channels, images.shape[-2] // stride, images.shape[-1] // stride)
            noise = torch.randn(size, generator=generator).to(images.device)
        latent = encoder(images, noise)
        jitter = torch.randn(latent.shape, generator=generator).to(latent.device)
        return latent, decoder(latent + self._loss.latent_noise * jitter)

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 and squared reconstruction error; logs PSNR in dB and the latent's spread."""
        images = self._images(batch)
        latent, output = self._reconstruct(images, generator)
        squared = functional.mse_loss(output, images)
        loss = self._loss.l1 * functional.l1_loss(output, images) + self._loss.squared * squared
        return loss, {"psnr_db": -10.0 * torch.log10(squared.detach()), "latent/std": latent.detach().std()}

    def sheet(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Inputs above, reconstructions below."""
        images = self._images(batch)[::2][:8]
        rows = torch.cat([images, self._reconstruct(images, generator)[1]], dim=2)
        return torch.cat(list(rows), dim=2)
