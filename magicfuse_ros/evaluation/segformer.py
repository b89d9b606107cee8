"""SegFormer-B0, the peer that MagicFuse's speed is measured against: it only segments."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn


class SegFormerB0(nn.Module):
    """transformers' SegFormer in its B0 size, 3.7 M parameters, with random weights.

    How long it takes does not depend on what the weights are, and nothing is downloaded.

    Parameters
    ----------
    classes
        Classes to tell apart.

    Raises
    ------
    ImportError
        The package transformers is not installed; the text says how to get it.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        try:
            # By name: a type check need not read through the whole of transformers.
            transformers: Any = importlib.import_module("transformers")
        except ImportError as error:
            raise ImportError(
                "SegFormer-B0, the benchmark's peer, needs the package transformers: "
                "pip install 'magicfuse_ros[benchmark]'"
            ) from error
        # The configuration's defaults are B0's (Xie et al., SegFormer, 2021).
        config = transformers.SegformerConfig(num_labels=classes)
        self.network: nn.Module = transformers.SegformerForSemanticSegmentation(config)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, classes, H/4, W/4) of images (B, 3, H, W)."""
        logits: Tensor = self.network(pixel_values=image).logits
        return logits


def segformer_b0(classes: int) -> SegFormerB0:
    """Make it in evaluation mode, with the same random weights every time."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return SegFormerB0(classes).eval()
