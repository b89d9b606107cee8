"""The trunk of R: EfficientNet-Lite0, as far as 1/32 of the image's size.

Sandler et al., "MobileNetV2: Inverted residuals and linear bottlenecks", CVPR 2018; Tan and Le,
"EfficientNet", ICML 2019; "Lite" leaves out what small processors do slowly. Its weights can be
those learned on ImageNet (`training.pretrained`). The norms that it was learned with are folded
into the convolutions before them.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional


class _Row(NamedTuple):
    """Blocks of one kind that follow each other."""

    level: int
    """Their outputs have 1/2^(level + 1) of the image's size."""
    blocks: int
    channels: int
    expansion: int
    kernel: int


_STEM = 32
# Table 1 of "EfficientNet", without the last row, which has a third of the parameters.
_ROWS = (
    _Row(0, 1, 16, 1, 3),
    _Row(1, 2, 24, 6, 3),
    _Row(2, 2, 40, 6, 5),
    _Row(3, 3, 80, 6, 3),
    _Row(3, 3, 112, 6, 5),
    _Row(4, 4, 192, 6, 5),
)

TRUNK_CHANNELS = tuple({row.level: row.channels for row in _ROWS}.values())
"""Channels of what `Trunk` returns for each level."""


class InvertedResidual(nn.Module):
    """Widen, look around in every channel by itself, narrow; added to the input where it fits."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, kernel: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self._adds = stride == 1 and inputs == outputs
        self.expand = nn.Conv2d(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = nn.Conv2d(
            hidden, hidden, kernel, stride, padding=kernel // 2, groups=hidden
        )
        self.project = nn.Conv2d(hidden, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, outputs, h / stride, w / stride), rounded up."""
        hidden = x if self.expand is None else functional.relu6(self.expand(x))
        result: Tensor = self.project(functional.relu6(self.depthwise(hidden)))
        return x + result if self._adds else result


class Trunk(nn.Module):
    """EfficientNet-Lite0 without its head.

    Parameters
    ----------
    levels
        How many are computed, 1 to 5: the last has 1/2^levels of the image's size.
    inputs
        RGB images side by side; of ImageNet's stem each sees an equal share.
    """

    def __init__(self, levels: int, inputs: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3 * inputs, _STEM, 3, 2, padding=1)
        self.levels = nn.ModuleList()
        channels = _STEM
        for level, rows in itertools.groupby(_ROWS, lambda row: row.level):
            blocks: list[nn.Module] = []
            for row in rows if level < levels else ():
                for _ in range(row.blocks):
                    stride = 2 if level and not blocks else 1
                    blocks.append(
                        InvertedResidual(channels, row.channels, stride, row.expansion, row.kernel)
                    )
                    channels = row.channels
            if blocks:
                self.levels.append(nn.Sequential(*blocks))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Look at images (B, 3 · inputs, H, W) in [0, 1].

        Returns
        -------
        list of Tensor
            For each level (B, TRUNK_CHANNELS[level], H / 2^(level + 1), W / 2^(level + 1)), the
            sizes rounded up.
        """
        x = functional.relu6(self.stem(2.0 * images - 1.0))
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features
