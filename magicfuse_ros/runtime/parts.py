"""A model's networks, each with what it gets for a picture: what is compiled, checked, exported."""

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
}
"""Part → names of its inputs, in the paper's symbols; an encoder without noise takes the first."""

OUTPUTS = {
    "encoder": ("condition",),
    "psi": ("prediction",),
    "phi": ("prediction",),
    "fusion": ("w", "z_s_next"),
    "decoder": ("image",),
}
"""Part → names of its outputs."""


def parts_of(
    model: MagicFuse, size: tuple[int, int], place: Callable[[Tensor], Tensor]
) -> dict[str, Part]:
    """List a model's parts by name, in the order of `INPUTS`.

    Parameters
    ----------
    size
        (height, width) of the images in pixels, multiples of the model's `multiple_of`.
    place
        Puts a tensor where the parts are to run.
    """
    config, generator = repr(model.config), torch.Generator().manual_seed(0)
    latent, state = (place(each) for each in model.draw_noise(*size, generator))
    noise = model.draw_encoder_noise(*size, generator)
    image = place(_picture(*size, generator))
    noises = () if noise is None else (place(noise),)
    encoder = Part("encoder", model.encoder, (image, *noises), config)
    condition = place(encoder.reference.clone())
    t = place(torch.tensor([model.config.diffusion.train_steps - 1]))
    inputs = {
        "psi": (condition, latent, t),
        "phi": (condition, latent, t),
        "fusion": (condition, condition.flip(-1), latent, latent, latent, state, t),
        "decoder": (condition,),
    }
    others = {
        name: Part(name, getattr(model, name), given, config) for name, given in inputs.items()
    }
    return {"encoder": encoder, **others}


def _picture(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw a picture of edges, slopes and noise, (1, 3, H, W) in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    checks = (x // 16 + y // 16) % 2 * 0.5
    picture = torch.stack([checks + 0.2, x / width, y / height])[None]
    return (picture + 0.05 * torch.randn(picture.shape, generator=generator)).clamp(0.0, 1.0)
