"""What a training stage is: networks that learn, networks that help, and the loss of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


class Stage(nn.Module):
    """A module whose forward is the loss.

    Registered submodules are trained; networks that only help are kept in `frozen`, out of sight
    of the optimiser and of DistributedDataParallel.

    Parameters
    ----------
    trained
        The networks that learn, by the names of the parts of a weights folder.
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
