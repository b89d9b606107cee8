"""What a model makes of an image, in plain PyTorch and as the paper says it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from magicfuse_ros.model.refiner import enlarged
from magicfuse_ros.model.sampler import Step, sample


class Pictures(NamedTuple):
    """D(z0_f) (Eq. 14), D(z0_ψ), D(z0_φ), z^s at the image's size, and the sample itself."""

    magimg: Tensor
    enhanced: Tensor
    infrared: Tensor
    logits: Tensor
    step: Step


def pictures_of(model, image, noise, settings, encoder_noise=None):
    """Fuse images (B, 3, H, W) in [0, 1]."""
    step = sample(model, model.encoder(image, encoder_noise), noise, model.config, settings)
    return Pictures(
        magimg=model.decoder(step.z0_fused),
        enhanced=model.decoder(step.z0_psi),
        infrared=model.decoder(step.z0_phi),
        logits=enlarged(step.state, (image.shape[-2], image.shape[-1])),
        step=step,
    )
