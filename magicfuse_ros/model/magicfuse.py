"""The whole model: E, D, Ψ, Φ and F & S, from a configuration or from a weights folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from magicfuse_ros.model import checkpoint
from magicfuse_ros.model.autoencoder import Decoder, Encoder
from magicfuse_ros.model.checkpoint import PARTS, REFINER
from magicfuse_ros.model.config import MagicFuseConfig
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.denoiser import Denoiser
from magicfuse_ros.model.diffusion import Estimate
from magicfuse_ros.model.fusion import Fusion
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.model.refiner import Refiner
from magicfuse_ros.model.sampler import Noise


class MagicFuse(nn.Module):
    """The model in plain PyTorch; a runtime compiles the same parts to make them fast.

    It can be given to `sample` as its `Networks`.
    """

    def __init__(self, config: MagicFuseConfig, labels: LabelSet) -> None:
        super().__init__()
        channels = config.autoencoder.latent_channels
        self.config = config
        self.labels = labels
        self.encoder = Encoder(config.autoencoder)
        self.decoder = Decoder(config.autoencoder)
        self.psi = Denoiser(config.psi, channels)
        self.phi = Denoiser(config.phi, channels)
        self.fusion = Fusion(config.fusion, channels, len(labels))
        self.refiner: Refiner | None = None
        if config.refiner is not None:
            self.refiner = Refiner(config.refiner, channels, labels)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the networks that it has, which are attributes and files of a weights folder."""
        return PARTS if self.refiner is None else (*PARTS, REFINER)

    def share(self, other: MagicFuse, parts: Iterable[str]) -> None:
        """Take these networks of another model in the place of its own."""
        for part in parts:
            setattr(self, part, getattr(other, part))

    def with_classes_of(self, labels: str) -> MagicFuse:
        """Return this model, its networks shared, with masks in one of R's `more_labels`.

        Raises
        ------
        ConfigError
            R does not know that label set, or there is no R.
        """
        known = () if self.config.refiner is None else self.config.refiner.more_labels
        if self.refiner is None or self.config.refiner is None or labels not in known:
            raise ConfigError(f"labels is {labels!r}; accepted: {', '.join(known) or 'none'}")
        refiner = replace(self.config.refiner, labels=labels)
        other = MagicFuse(replace(self.config, refiner=refiner), self.labels)
        other.share(self, PARTS)
        for name, network in self.refiner.named_children():
            setattr(other.refiner, name, network)
        return other.train(self.training)

    @classmethod
    def from_config(cls, config: MagicFuseConfig) -> MagicFuse:
        """Build with random weights; raises `LabelSetError` for an unknown label set."""
        return cls(config, LabelSet.load(config.labels))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MagicFuse:
        """Load a weights folder, as `save_pretrained` writes it, in evaluation mode.

        Raises
        ------
        CheckpointError
            The folder or a file is missing or corrupt, or a tensor does not fit the configuration;
            the message names it.
        LabelSetError
            The configuration names a label set that is unknown.

        Examples
        --------
        >>> model = MagicFuse.from_pretrained("models/tiny")
        >>> model.config.resolution, len(model.labels)
        ((320, 240), 12)
        """
        folder = Path(folder)
        config = checkpoint.read_config(folder)
        labels = checkpoint.read_labels(folder, config)
        with torch.device("meta"):
            model = cls(config, labels)
        for part in model.parts:
            checkpoint.load_part(folder, part, getattr(model, part))
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and a safetensors file for each part; see `from_pretrained`."""
        checkpoint.write_config(Path(folder), self.config)
        for part in self.parts:
            checkpoint.save_part(Path(folder), part, getattr(self, part))

    def denoise(
        self, condition: Tensor, z_psi: Tensor, z_phi: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Return the predictions of Ψ and Φ at timestep t, each (B, 8, h, w)."""
        step = torch.tensor([t], device=condition.device)
        return self.psi(condition, z_psi, step), self.phi(condition, z_phi, step)

    def fuse(
        self, psi: Estimate, phi: Estimate, z_f: Tensor, state: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Return the weight w (B, 8, h, w) and the next z^s (B, classes, h, w)."""
        step = torch.tensor([t], device=z_f.device)
        w, state = self.fusion(psi.z0, phi.z0, z_f, psi.eps, phi.eps, state, step)
        return w, state

    def draw_noise(
        self, height: int, width: int, generator: torch.Generator, batch: int = 1
    ) -> Noise:
        """Draw the starting noise for images of `height` × `width` pixels.

        Like the encoder's, it is on the generator's device; nothing else in a sample is random.
        """
        inner = self._latent_size(height, width)
        channels = (self.config.autoencoder.latent_channels, len(self.labels))
        return Noise(*(_normal((batch, count, *inner), generator) for count in channels))

    def draw_encoder_noise(
        self, height: int, width: int, generator: torch.Generator, batch: int = 1
    ) -> Tensor | None:
        """Draw the noise that E takes for such images; None where this E takes none."""
        channels = self.config.autoencoder.noise_channels
        shape = (batch, channels, *self._latent_size(height, width))
        return _normal(shape, generator) if channels else None

    def _latent_size(self, height: int, width: int) -> tuple[int, int]:
        stride = self.config.autoencoder.stride
        return height // stride, width // stride


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)
