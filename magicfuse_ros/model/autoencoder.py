"""E and D: the lightweight autoencoder shared by Ψ and Φ (paper 2.2, "Autoencoder Mapping")."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from magicfuse_ros.model.config import AutoencoderConfig, Norm


def _norm(kind: Norm, channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels) if kind == "instance" else nn.Identity()


def _conv_block(
    inputs: int, outputs: int, norm: Norm, activation: nn.Module, *, stride: int = 1
) -> nn.Sequential:
    """Build a 3×3 convolution (4×4 where it halves the size), its norm and its activation."""
    kernel = 3 if stride == 1 else 4
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=1), _norm(norm, outputs), activation
    )


class ResidualBlock(nn.Module):
    """Adds to x the result of two blocks of convolution, norm and activation."""

    def __init__(self, channels: int, norm: Norm, activation: nn.Module) -> None:
        super().__init__()
        self.first = _conv_block(channels, channels, norm, activation)
        self.second = _conv_block(channels, channels, norm, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        residual: Tensor = self.second(self.first(x))
        return x + residual


def _residual_blocks(count: int, channels: int, norm: Norm, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels, norm, activation) for _ in range(count)))


class Encoder(nn.Module):
    """E encodes an image as a latent."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        width, norm, activation = config.encoder_width, config.norm, nn.LeakyReLU(0.2)
        self.inputs = _conv_block(3 * config.patch**2, width, norm, activation)
        self.levels = nn.ModuleList(
            _residual_blocks(config.encoder_blocks, width, norm, activation)
            for _ in range(config.downsamples + 1)
        )
        self.downs = nn.ModuleList(
            _conv_block(width, width, norm, activation, stride=2) for _ in range(config.downsamples)
        )
        self.merge_noise = (
            _conv_block(width + config.noise_channels, width, norm, activation)
            if config.noise_channels
            else None
        )
        self.outputs = nn.Conv2d(width, config.latent_channels, 3, padding=1)
        self.linear = (
            nn.Conv2d(3 * config.patch**2, config.latent_channels, 1)
            if config.linear_path
            else None
        )

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Encode an image (B, 3, H, W) in [0, 1] as a latent in [-1, 1].

        H and W are multiples of the stride; the latent is (B, latent_channels, H / stride, W /
        stride).

        Parameters
        ----------
        noise
            (B, noise_channels, H / stride, W / stride), standard Gaussian; None where
            `noise_channels` is 0. It is an argument because an exporter would freeze noise that
            the network draws itself.

        Raises
        ------
        ValueError
            This encoder needs noise and got none.
        """
        patches = functional.pixel_unshuffle(image, self.config.patch)
        x = self.inputs(patches)
        for level, down in zip(self.levels, self.downs, strict=False):
            x = down(level(x))
        if self.merge_noise is not None:
            if noise is None:
                raise ValueError(
                    f"this encoder needs noise of {self.config.noise_channels} channels; "
                    "none was given"
                )
            x = self.merge_noise(torch.cat([x, noise], dim=1))
        x = self.outputs(self.levels[-1](x))
        if self.linear is not None:
            latent: Tensor = (self.linear(patches) + x).clamp(-1.0, 1.0)
            return latent
        return 2.0 * torch.sigmoid(x) - 1.0


class Decoder(nn.Module):
    """D decodes a latent to an image."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        width, norm, activation = config.decoder_width, config.norm, nn.ReLU()
        # Only the residual blocks of D are normalised.
        self.inputs = _conv_block(config.latent_channels, width, "none", activation)
        self.levels = nn.ModuleList(
            _residual_blocks(config.decoder_blocks, width, norm, activation)
            for _ in range(config.downsamples + 1)
        )
        self.ups = nn.ModuleList(
            _conv_block(width, width, "none", activation) for _ in range(config.downsamples)
        )
        self.outputs = nn.Conv2d(width, 3 * config.patch**2, 3, padding=1)
        self.linear = (
            nn.Conv2d(config.latent_channels, 3 * config.patch**2, 1)
            if config.linear_path
            else None
        )

    def forward(self, latent: Tensor) -> Tensor:
        """Decode a latent (B, latent_channels, h, w) to (B, 3, h · stride, w · stride) in [0, 1].

        Values outside [-1, 1] are clipped.
        """
        unit = ((latent + 1.0) / 2.0).clamp(0.0, 1.0)
        x = self.levels[0](self.inputs(unit))
        for up, level in zip(self.ups, list(self.levels)[1:], strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = level(up(x))
        x = self.outputs(x)
        if self.linear is not None:
            image = functional.pixel_shuffle(x + self.linear(unit), self.config.patch)
            return image.clamp(0.0, 1.0)
        return torch.sigmoid(functional.pixel_shuffle(x, self.config.patch))


def fit_linear_path(encoder: Encoder, decoder: Decoder, images: list[Tensor]) -> None:
    """Set the linear paths of E and D to the PCA of the images' patches.

    The last layers of the networks are set to zero, so that at first they add nothing to the linear
    paths. Every component is scaled so that 99.9 % of its values lie in [-1, 1]. The
    images are (B, 3, H, W) in [0, 1] each.

    Raises
    ------
    ValueError
        The autoencoder has no linear path.
    """
    to_latent, to_patch = encoder.linear, decoder.linear
    if to_latent is None or to_patch is None:
        raise ValueError(
            "this autoencoder has no linear path; fit_linear_path needs autoencoder.linear_path"
        )
    patch, channels = encoder.config.patch, encoder.config.latent_channels
    rows = torch.cat(
        [
            functional.pixel_unshuffle(image, patch).permute(0, 2, 3, 1).flatten(0, 2)
            for image in images
        ]
    )
    mean = rows.mean(dim=0)
    components = torch.linalg.svd((rows - mean).T @ (rows - mean))[0][:, :channels]
    values = ((rows - mean) @ components).abs()
    size = torch.quantile(values[:: max(1, len(rows) // 100_000)], 0.999, dim=0)
    with torch.no_grad():
        forward = (components / size).T
        to_latent.weight.copy_(forward[:, :, None, None])
        to_latent.bias.copy_(-forward @ mean)  # type: ignore[union-attr]
        # D sees (z + 1) / 2.
        to_patch.weight.copy_((2.0 * components * size)[:, :, None, None])
        to_patch.bias.copy_(mean - (components * size).sum(dim=1))  # type: ignore[union-attr]
        for outputs in (encoder.outputs, decoder.outputs):
            nn.init.zeros_(outputs.weight)
            nn.init.zeros_(outputs.bias)  # type: ignore[arg-type]
