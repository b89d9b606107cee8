"""A model's networks with example inputs: this is what is compiled, checked and exported."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.runtime.backends import Part

INPUTS = {
    "encoder": ("image", "noise"),
    "psi": ("condition", "z_psi", "t"),
    "phi": ("condition", "z_phi", "t"),
    "fusion": ("z0_psi", "z0_phi", "z_f", "eps_psi", "eps_phi", "z_s", "t"),
    "decoder": ("latent",),
    "refiner": ("image", "z0_psi", "z0_phi", "z0_f", "z_s"),
}
"""Part → names of its inputs, in the paper's symbols; an encoder without noise has only `image`."""

OUTPUTS = {
    "encoder": ("condition",),
    "psi": ("prediction",),
    "phi": ("prediction",),
    "fusion": ("w", "z_s_next"),
    "decoder": ("image",),
    "refiner": ("maps", "logits"),
}
"""Part → names of its outputs."""


def parts_of(
    model: MagicFuse, size: tuple[int, int], to_device: Callable[[Tensor], Tensor]
) -> dict[str, Part]:
    """Return a model's parts by name, in the order of its own, with inputs for a drawn picture.

    Parameters
    ----------
    model
        In evaluation mode, on the CPU; only its encoder is run.
    size
        (height, width) of the images in pixels, multiples of the model's `multiple_of`.
    to_device
        Puts a tensor where the parts are to run.
    """
    draw = torch.Generator().manual_seed(0)
    noise, encoder_noise = model.draw_noise(*size, draw), model.draw_encoder_noise(*size, draw)
    image = _picture(*size, draw)
    seen = (image,) if encoder_noise is None else (image, encoder_noise)
    with torch.no_grad():  # not inference mode: exporters trace with these
        condition = model.encoder(*seen)
    t = torch.tensor([model.config.diffusion.train_steps - 1])
    latent = noise.latent
    inputs = {
        "encoder": seen,
        "psi": (condition, latent, t),
        "phi": (condition, latent, t),
        "fusion": (condition, condition.flip(-1), latent, latent, latent, noise.state, t),
        "decoder": (condition,),
        "refiner": (image, condition, condition.flip(-1), condition, noise.state),
    }
    return {
        name: Part(
            name=name,
            module=getattr(model, name),
            inputs=tuple(to_device(each) for each in inputs[name]),
            config=repr(model.config),
        )
        for name in model.parts
    }


def _picture(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw a picture of edges, slopes and noise, (1, 3, H, W) in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    checks = (x // 16 + y // 16) % 2 * 0.5
    picture = torch.stack([checks + 0.2, x / width, y / height])[None]
    return (picture + 0.05 * torch.randn(picture.shape, generator=generator)).clamp(0.0, 1.0)
