"""A model's networks with example inputs: this is what is compiled, checked and exported."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from magicfuse_ros.model.magicfuse import MagicFuse

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


Network = Callable[..., Any]
"""A compiled part: called with tensors shaped as `Part.inputs`, returns what the module returns."""


@dataclass(frozen=True)
class Part:
    """One network to compile for one shape of inputs."""

    name: str  # unique among a model's parts
    module: nn.Module  # the network in evaluation mode, on the CPU
    # The network's inputs for a picture, so that parity means something, on the device that the
    # network is to run on.
    inputs: tuple[Tensor, ...]
    # The settings that the module was made from, as text. They hold what its weights and layers do
    # not show, such as the number of attention heads.
    config: str = ""

    @cached_property
    def weights(self) -> str:
        """A hash of the network's weights and layers, which names what is compiled from them."""
        digest = hashlib.sha256(repr(self.module).encode())
        for name, tensor in self.module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @cached_property
    def reference(self) -> Any:
        """What the module gives for the inputs, on the CPU: parity is measured against this."""
        with torch.inference_mode():
            return self.module(*(each.cpu() for each in self.inputs))


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
