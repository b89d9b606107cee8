"""A model applied to one image at a time, as the node does it: the same noise each time."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from magicfuse_ros.evaluation.ablations import Variant, ablated, late_fusion
from magicfuse_ros.evaluation.metrics import U8
from magicfuse_ros.model.magicfuse import MagicFuse, upsampled_logits
from magicfuse_ros.model.partial import Branch, OneBranch, Unaided
from magicfuse_ros.model.sampler import Networks, SamplerSettings, Step, sample


class Outcome(NamedTuple):
    """What a model makes of an image: `Pictures` as uint8 images.

    Attributes
    ----------
    magimg, enhanced, infrared
        (H, W, 3) RGB.
    mask
        (H, W) class ids.
    step
        The sample they were decoded from.
    milliseconds
        Encoding, sampling, and decoding MagImg and the logits; not the other two pictures.
    """

    magimg: U8
    enhanced: U8
    infrared: U8
    mask: U8
    step: Step
    milliseconds: float


class Inference:
    """Runs a model on RGB images (H, W, 3) of its resolution.

    Parameters
    ----------
    model
        In evaluation mode.
    steps
        DDIM steps; None takes the model's.
    unaided
        Puts the condition latent in the place of both branches' estimates: what F & S do without
        Ψ and Φ (only for weights of F & S that were trained so).
    """

    def __init__(
        self, model: MagicFuse, steps: int | None = None, *, unaided: bool = False
    ) -> None:
        self.model = model
        self._unaided = unaided
        self.settings = SamplerSettings.of(model.config, model.labels.thermal_ids(), steps=steps)

    @torch.inference_mode()
    def reconstruct(self, image: U8) -> U8:
        """D(E(image))."""
        return _image(self.model.decoder(self._encode(_planes(image))))

    @torch.inference_mode()
    def step(self, image: U8) -> Step:
        """Sample without decoding anything."""
        return self._sample(self.model, _planes(image), self.settings)

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> U8:
        """D of a latent (1, 8, h, w)."""
        return _image(self.model.decoder(latent))

    @torch.inference_mode()
    def branch(self, image: U8, branch: Branch) -> U8:
        """Make the restored image (Ψ) or the imagined infrared (Φ) alone."""
        step = self._sample(OneBranch(self.model, branch), _planes(image), self.settings)
        return _image(self.model.decoder(step.z0_psi if branch == "psi" else step.z0_phi))

    @torch.inference_mode()
    def fuse(self, image: U8, variant: Variant = "full") -> Outcome:
        """Make everything the model makes of an image, or one of the paper's ablations does."""
        model = self.model
        networks, settings = ablated(model, self.settings, variant)
        if self._unaided:
            networks = Unaided(model)
        planes = _planes(image)
        started = time.perf_counter()
        step = self._sample(networks, planes, settings)
        fused = model.decoder(step.z0_fused)
        mask = upsampled_logits(step.state, planes.shape[-2:]).argmax(dim=1)
        milliseconds = (time.perf_counter() - started) * 1e3
        enhanced, infrared = model.decoder(step.z0_psi), model.decoder(step.z0_phi)
        if variant == "late_fusion":
            fused = late_fusion(enhanced, infrared, step.w_r)
        return Outcome(
            magimg=_image(fused),
            enhanced=_image(enhanced),
            infrared=_image(infrared),
            mask=np.asarray(mask[0].to(torch.uint8), np.uint8),
            step=step,
            milliseconds=milliseconds,
        )

    def _sample(self, networks: Networks, planes: Tensor, settings: SamplerSettings) -> Step:
        condition = self._encode(planes)
        height, width = planes.shape[-2:]
        noise = self.model.draw_noise(height, width, self._generator())
        return sample(networks, condition, noise, self.model.config, settings)

    def _encode(self, planes: Tensor) -> Tensor:
        height, width = planes.shape[-2:]
        noise = self.model.draw_encoder_noise(height, width, self._generator())
        latent: Tensor = self.model.encoder(planes, noise)
        return latent

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.model.config.diffusion.seed)


def _planes(image: U8) -> Tensor:
    """(1, 3, H, W) float32 in [0, 1], channels last in memory, of an RGB image."""
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255.0
    return planes.contiguous(memory_format=torch.channels_last)


def _image(planes: Tensor) -> U8:
    """RGB image (H, W, 3) of (1, 3, H, W) in [0, 1]."""
    pixels = (planes[0].clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
