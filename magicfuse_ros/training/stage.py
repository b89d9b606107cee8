"""What a training stage is: networks that learn, networks that help, and the loss of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from magicfuse_ros.model.labels import UNKNOWN
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.sampler import Noise

Batch = dict[str, Tensor]


def outside_boxes(batch: Batch) -> Tensor:
    """Return where a batch is known to hold no boxed object, (B, H, W) boolean.

    That is outside every box, without a label, of images whose objects have boxes. Hot spots of
    images that nobody annotated have a thermal weight too, but are not boxes.
    """
    boxed = batch["annotated"][:, None, None] > 0.0
    return boxed & (batch["labels"] == UNKNOWN) & (batch["thermal_weight"] == 0.0)


def encoder_noise(model: MagicFuse, image: Tensor, generator: torch.Generator) -> Tensor | None:
    """Draw what E needs beside images (B, 3, H, W), on their device; None where it needs none."""
    height, width = image.shape[-2:]
    noise = model.draw_encoder_noise(height, width, generator, len(image))
    return None if noise is None else noise.to(image.device)


def encode(model: MagicFuse, image: Tensor, generator: torch.Generator) -> Tensor:
    """Return E's latent (B, 8, h, w) of images (B, 3, H, W), without a gradient."""
    noise = encoder_noise(model, image, generator)
    with torch.no_grad():
        latent: Tensor = model.encoder(image.contiguous(memory_format=torch.channels_last), noise)
    return latent


def starting_point(
    model: MagicFuse, image: Tensor, generator: torch.Generator
) -> tuple[Tensor, Noise]:
    """Return what sampling for images (B, 3, H, W) starts from: E's latent, and the noise."""
    height, width = image.shape[-2:]
    noise = model.draw_noise(height, width, generator, len(image))
    condition = encode(model, image, generator)
    return condition, Noise(noise.latent.to(image.device), noise.state.to(image.device))


class Stage(nn.Module):
    """A module whose forward is the loss.

    Registered submodules are trained; networks that only help are kept in `frozen`, out of sight
    of the optimiser and of DistributedDataParallel.

    Parameters
    ----------
    trained
        The networks that learn, by the names of the parts of a weights folder; one of another name
        only helps to learn, and is not exported.
    frozen
        The others; they are put in evaluation mode, without gradients.
    model
        The model that they belong to, as `_model`. It is no submodule: only `trained` is trained.

    Attributes
    ----------
    trained_steps
        Numbers of DDIM steps for which what it trains is made; empty where it is for any.
    pretrained
        Those modules of the networks that learn which know much already, and learn more slowly.
    """

    frozen: dict[str, nn.Module]
    trained_steps: tuple[int, ...] = ()
    pretrained: tuple[nn.Module, ...]
    _model: MagicFuse

    def __init__(
        self,
        trained: dict[str, nn.Module],
        frozen: dict[str, nn.Module],
        model: MagicFuse | None = None,
    ) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(trained)
        # Not as attributes, which would make their networks submodules.
        self.__dict__.update(frozen={}, pretrained=(), _model=model)
        self._freeze(frozen)

    def _freeze(self, modules: dict[str, nn.Module]) -> None:
        for module in modules.values():
            module.requires_grad_(requires_grad=False).eval()
        self.frozen.update(modules)

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, (), and scalars to log; all noise comes from `generator`."""
        raise NotImplementedError

    def sheet(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return a picture (3, H, W) in [0, 1] of what the stage does with a batch."""
        raise NotImplementedError
