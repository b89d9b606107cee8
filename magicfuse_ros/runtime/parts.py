"""A model's networks, each with what it gets for a picture: what is compiled, checked, exported."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

import torch
from torch import Tensor

from magicfuse_ros.model.noise import draw_encoder_noise, draw_noise, latent_size
from magicfuse_ros.model.stored import StoredModel
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
    model: StoredModel, size: tuple[int, int], place: Callable[[Tensor], Tensor]
) -> dict[str, Part]:
    """List a model's parts by name, in the order of `INPUTS`.

    Nothing is computed here, and no network made: a part does either when it is asked.

    Parameters
    ----------
    size
        (height, width) of the images in pixels, multiples of the model's `multiple_of`.
    place
        Puts a tensor where the parts are to run.
    """
    examples = _Examples(model, size, place)
    return {
        name: Part(
            name=name,
            make_module=partial(model.module, name),
            make_inputs=partial(examples.inputs, name),
            shapes=examples.shapes(name),
            weights=partial(model.weights, name),
            config=repr(model.config),
            place=place,
        )
        for name in INPUTS
    }


class _Examples:
    """What the parts get for one picture, so that parity means something."""

    def __init__(
        self, model: StoredModel, size: tuple[int, int], place: Callable[[Tensor], Tensor]
    ) -> None:
        self._model, self._size, self._place = model, size, place

    def shapes(self, name: str) -> tuple[Tensor, ...]:
        """Return tensors without values, of the shapes and types of a part's inputs."""
        config, classes = self._model.config, len(self._model.labels)
        inner = latent_size(config, self._size)
        latent = _meta(1, config.autoencoder.latent_channels, *inner)
        state, t = _meta(1, classes, *inner), _meta(1, dtype=torch.int64)
        noise = config.autoencoder.noise_channels
        noises = (_meta(1, noise, *inner),) if noise else ()
        return {
            "encoder": (_meta(1, 3, *self._size), *noises),
            "psi": (latent, latent, t),
            "phi": (latent, latent, t),
            "fusion": (*(latent,) * 5, state, t),
            "decoder": (latent,),
        }[name]

    def inputs(self, name: str) -> tuple[Tensor, ...]:
        """Return a part's inputs, placed."""
        image, noises, latent, state = self._drawn
        if name == "encoder":
            return (image, *noises)
        condition, t = self._condition, self._t
        if name == "fusion":
            return condition, condition.flip(-1), latent, latent, latent, state, t
        return (condition,) if name == "decoder" else (condition, latent, t)

    @cached_property
    def _drawn(self) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor]:
        model, generator = self._model, torch.Generator().manual_seed(0)
        drawn = draw_noise(model.config, len(model.labels), self._size, generator)
        latent, state = (self._place(each) for each in drawn)
        noise = draw_encoder_noise(model.config, self._size, generator)
        image = self._place(_picture(*self._size, generator))
        return image, () if noise is None else (self._place(noise),), latent, state

    @cached_property
    def _condition(self) -> Tensor:
        with torch.no_grad():  # not inference mode: exporters trace with these
            encoder = self._model.module("encoder")
            condition: Tensor = encoder(*(each.cpu() for each in self.inputs("encoder")))
        return self._place(condition)

    @cached_property
    def _t(self) -> Tensor:
        return self._place(torch.tensor([self._model.config.diffusion.train_steps - 1]))


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _picture(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw a picture of edges, slopes and noise, (1, 3, H, W) in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    checks = (x // 16 + y // 16) % 2 * 0.5
    picture = torch.stack([checks + 0.2, x / width, y / height])[None]
    return (picture + 0.05 * torch.randn(picture.shape, generator=generator)).clamp(0.0, 1.0)
