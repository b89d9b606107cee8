"""The PyTorch model applied to one image at a time, with the same noise each time.

It gives what the engine does not: D(E(x)), the paper's ablations, and the insides of a step.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magicfuse_ros.evaluation.ablations import Variant, ablated, late_fusion
from magicfuse_ros.evaluation.metrics import U8, grey
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.partial import Unaided
from magicfuse_ros.model.sampler import Networks, Noise, SamplerSettings, Step, sample
from magicfuse_ros.runtime.camera_size import CameraPictures
from magicfuse_ros.runtime.letterbox import Letterbox, classify, quantise, to_camera, to_input


class Outcome(NamedTuple):
    """What a model makes of an image: `Pictures` as uint8 images, (H, W, 3) RGB."""

    magimg: U8
    enhanced: U8
    infrared: U8
    mask: U8  # (H, W) class ids, chosen as the engine does
    step: Step  # the sample they were decoded from, on the model's device


class Inference:
    """Runs a model in evaluation mode on RGB images (H, W, 3), on the device that it is on.

    Without `steps` (of DDIM) it takes the model's. `unaided` puts the condition latent in the place
    of both branches' estimates: what F & S do without Ψ and Φ (only for weights of F & S that were
    trained so). `paper_fusion` makes the pictures without R, as the engine's setting does.
    """

    def __init__(
        self,
        model: MagicFuse,
        steps: int | None = None,
        *,
        unaided: bool = False,
        paper_fusion: bool = False,
    ) -> None:
        self.model = model
        self._unaided, self._paper_fusion = unaided, paper_fusion
        self.settings = SamplerSettings.of(model.config, model.labels.thermal_ids(), steps=steps)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def reconstruct(self, image: U8) -> U8:
        """D(E(image))."""
        return _image(self.model.decoder(self._encode(self._planes(image))))

    @torch.inference_mode()
    def fuse(self, image: U8, variant: Variant = "full") -> Outcome:
        """Make everything the model makes of an image, or one of the paper's ablations does.

        The ablations are the paper's, decoded by D and enlarged to the image's size.
        """
        model = self.model
        networks, settings = ablated(model, self.settings, variant)
        if self._unaided:
            networks = Unaided(model)
        planes, letterbox = self._input(image)
        step = self._sample(networks, planes, settings)
        fused, enhanced, heat = (
            model.decoder(latent) for latent in (step.z0_fused, step.z0_psi, step.z0_phi)
        )
        if variant == "late_fusion":
            fused = late_fusion(enhanced, heat, step.w_r)
        mask = _mask(step.state, letterbox)
        if model.refiner is not None and variant == "full" and not self._paper_fusion:
            latents = (step.z0_psi, step.z0_phi, step.z0_fused)
            maps, logits = model.refiner(planes, *latents, step.state)
            mask = _mask(logits, letterbox)
            pictures = CameraPictures(image, planes, enhanced, letterbox)
            imagined = cv2.cvtColor(pictures.infrared(maps, heat), cv2.COLOR_GRAY2RGB)
            infrared = np.asarray(imagined, np.uint8)
            return Outcome(pictures.magimg(maps), pictures.enhanced(), infrared, mask, step)
        magimg, restored, infrared = (
            to_camera(_image(each), letterbox) for each in (fused, enhanced, heat)
        )
        return Outcome(magimg, restored, infrared, mask, step)

    @torch.inference_mode()
    def light_of_heat(self, image: U8) -> NDArray[np.float32]:
        """Return how much brighter heat makes MagImg, (H, W) in grey levels; 0 without R."""
        model = self.model
        if model.refiner is None:
            return np.zeros(image.shape[:2], np.float32)
        planes, letterbox = self._input(image)
        step = self._sample(model, planes, self.settings)
        maps, _ = model.refiner(planes, step.z0_psi, step.z0_phi, step.z0_fused, step.state)
        pictures = CameraPictures(image, planes, model.decoder(step.z0_psi), letterbox)
        lit, unlit = (grey(pictures.magimg(each)) for each in (maps, torch.zeros_like(maps)))
        return np.asarray(np.abs(lit.astype(np.float32) - unlit), np.float32)

    def _sample(self, networks: Networks, planes: Tensor, settings: SamplerSettings) -> Step:
        condition = self._encode(planes)
        height, width = planes.shape[-2:]
        drawn = self.model.draw_noise(height, width, self._generator())
        noise = Noise(*(each.to(self.device) for each in drawn))
        return sample(networks, condition, noise, self.model.config, settings)

    def _encode(self, planes: Tensor) -> Tensor:
        height, width = planes.shape[-2:]
        noise = self.model.draw_encoder_noise(height, width, self._generator())
        noise = None if noise is None else noise.to(self.device)
        latent: Tensor = self.model.encoder(planes, noise)
        return latent

    def _input(self, image: U8) -> tuple[Tensor, Letterbox]:
        """Fit an image of any size as the engine does, and say how it lies in the input."""
        config, size = self.model.config, (image.shape[0], image.shape[1])
        letterbox = Letterbox.fitting(size, config.resolution, config.multiple_of)
        return self._planes(to_input(image, letterbox)), letterbox

    def _planes(self, image: U8) -> Tensor:
        """(1, 3, H, W) float32 in [0, 1], channels last in memory, of an RGB image."""
        planes = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None].float() / 255.0
        return planes.contiguous(memory_format=torch.channels_last)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.model.config.diffusion.seed)


def _mask(logits: Tensor, letterbox: Letterbox) -> U8:
    return classify(quantise(logits[0].softmax(dim=0)).cpu().numpy(), letterbox)[0]


def _image(planes: Tensor) -> U8:
    """RGB image (H, W, 3) of (1, 3, H, W) in [0, 1]."""
    pixels = (planes[0].clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())
