"""SegFormer: B0 is the peer of MagicFuse's speed, and any of them judges its pictures."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class SegFormerB0(nn.Module):
    """transformers' SegFormer in its B0 size, 3.7 M parameters, with random weights.

    How long it takes does not depend on what the weights are, and nothing is downloaded.

    With `checkpoint`, the folder of a SegFormer of any size as transformers saves it, it begins
    with those weights; those of the last layer stay random where its classes are others.

    Raises ImportError, OSError or ValueError if the package transformers is not installed, or the
    folder holds no SegFormer; the text says what to do.
    """

    def __init__(self, classes: int, checkpoint: Path | None = None) -> None:
        super().__init__()
        try:
            # By name: a type check need not read through the whole of transformers.
            transformers: Any = importlib.import_module("transformers")
        except ImportError as error:
            raise ImportError(
                "SegFormer-B0, a peer of this model, needs the package transformers: "
                "pip install 'magicfuse_ros[benchmark]'"
            ) from error
        kind = transformers.SegformerForSemanticSegmentation
        if checkpoint is not None:
            if not (checkpoint / "config.json").is_file():
                raise ValueError(f"{checkpoint} holds no config.json; give a SegFormer's folder")
            self.network: nn.Module = kind.from_pretrained(
                checkpoint,
                num_labels=classes,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                use_safetensors=True,
            )
            return
        # The configuration's defaults are B0's (Xie et al., SegFormer, 2021).
        config = transformers.SegformerConfig(num_labels=classes)
        self.network = kind(config)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, classes, H/4, W/4) of images (B, 3, H, W)."""
        logits: Tensor = self.network(pixel_values=image).logits
        return logits


def segformer_b0(classes: int) -> SegFormerB0:
    """Make it in evaluation mode, with the same random weights every time."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return SegFormerB0(classes).eval()
