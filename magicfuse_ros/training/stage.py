"""What a training stage is: networks that learn, networks that help, and the loss of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from magicfuse_ros.model.labels import UNKNOWN

Batch = dict[str, Tensor]

BOXED = ("person", "car", "bike", "bicycle")
"""Classes that the boxes of MSRS annotate, by their names in the label sets."""


def outside_boxes(batch: Batch) -> Tensor:
    """Return where a batch is known to hold no boxed object, (B, H, W) boolean.

    That is outside every box, without a label, of images whose objects have boxes. Hot spots of
    images that nobody annotated have a thermal weight too, but are not boxes.
    """
    boxed = batch["annotated"][:, None, None] > 0.0
    return boxed & (batch["labels"] == UNKNOWN) & (batch["thermal_weight"] == 0.0)


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
    """

    frozen: dict[str, nn.Module]

    def __init__(self, trained: dict[str, nn.Module], frozen: dict[str, nn.Module]) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(trained)
        self.__dict__["frozen"] = frozen
        for module in frozen.values():
            module.requires_grad_(requires_grad=False).eval()

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, (), and scalars to log; all noise comes from `generator`."""
        raise NotImplementedError

    def sheet(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return a picture (3, H, W) in [0, 1] of what the stage does with a batch."""
        raise NotImplementedError
