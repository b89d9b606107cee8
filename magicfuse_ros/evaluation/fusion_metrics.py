"""The scores of a fused picture, each against both of its sources, under the names papers use.

All images are grey, (H, W) uint8 of one size. A score that the images do not define is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from magicfuse_ros.evaluation import metrics
from magicfuse_ros.evaluation.metrics import U8
from magicfuse_ros.evaluation.tables import Column


def spatial_frequency(image: U8) -> float:
    """SF of Eskicioglu and Fisher (1995): root of the mean squared row plus column difference.

    In grey levels; each mean is over the differences that there are.

    >>> spatial_frequency(np.tile(np.array([0, 6], np.uint8), (4, 2)))
    6.0
    """
    x, y = _differences(image)
    return math.sqrt(float((x * x).mean()) + float((y * y).mean()))


def standard_deviation(image: U8) -> float:
    """SD: the standard deviation of the grey levels."""
    return float(image.std())


def average_gradient(image: U8) -> float:
    """AG of Cui et al. (2015): mean of √((Δx² + Δy²)/2) over forward differences, in grey levels.

    >>> average_gradient(np.add.outer(np.arange(5), np.arange(5)).astype(np.uint8))
    1.0
    """
    x, y = _differences(image)
    return float(np.sqrt((x[:-1] ** 2 + y[:, :-1] ** 2) / 2.0).mean())


def sum_of_correlations(visible: U8, infrared: U8, fused: U8) -> float:
    """SCD of Aslantas and Bendes (2015): how much of each source the difference to the other is.

    r(fused - infrared, visible) + r(fused - visible, infrared), -2 to 2; NaN where one of the four
    is constant.
    """
    first, second, both = (image.astype(np.float64) for image in (visible, infrared, fused))
    of_first = metrics.correlation(both - second, first)
    return of_first + metrics.correlation(both - first, second)


def visual_information(visible: U8, infrared: U8, fused: U8) -> float:
    """VIF of Sheikh and Bovik (2006) in the pixel domain, summed over both sources as MI is.

    About 2 where fused is both sources; NaN for a constant source.

    Raises ValueError if an image has a side below 41 pixels, too few for the four scales.
    """
    if min(fused.shape) < 41:
        raise ValueError(f"images are {fused.shape} for VIF; accepted: 41 x 41 or larger")
    # Imported here, as in metrics.py.
    from torchmetrics.functional.image import visual_information_fidelity

    total = 0.0
    for source in (visible, infrared):
        if np.ptp(source) == 0:
            return math.nan
        ours, reference = (torch.tensor(image)[None, None].float() for image in (fused, source))
        total += float(visual_information_fidelity(ours, reference))
    return total


class FusionMetric(NamedTuple):
    """A table's column, and what is measured of visible, infrared and fused."""

    column: Column
    of: Callable[[U8, U8, U8], float]


FUSION_METRICS: dict[str, FusionMetric] = {
    "EN": FusionMetric(Column("EN (bit)"), lambda _v, _i, fused: metrics.entropy(fused)),
    "MI": FusionMetric(Column("MI (bit)"), metrics.fusion_mutual_information),
    "Qabf": FusionMetric(Column("Qabf", 3), metrics.qabf),
    "SSIM": FusionMetric(Column("SSIM", 3), metrics.ssim_two_sources),
    "PSNR_true": FusionMetric(Column("PSNR, true (dB)"), metrics.psnr_two_sources_db),
    "PSNR_fusion": FusionMetric(
        Column("PSNR, fusion convention (dB)"), metrics.psnr_fusion_convention_db
    ),
    "PSNR_visible": FusionMetric(
        Column("PSNR to visible (dB)"), lambda visible, _i, fused: metrics.psnr_db(fused, visible)
    ),
    "SF": FusionMetric(Column("SF"), lambda _v, _i, fused: spatial_frequency(fused)),
    "SD": FusionMetric(Column("SD"), lambda _v, _i, fused: standard_deviation(fused)),
    "AG": FusionMetric(Column("AG"), lambda _v, _i, fused: average_gradient(fused)),
    "SCD": FusionMetric(Column("SCD"), sum_of_correlations),
    "VIF": FusionMetric(Column("VIF"), visual_information),
}
"""By the names that protocols call them."""

OF_THE_PAPER = ("EN", "MI", "Qabf", "SSIM", "PSNR_true", "PSNR_fusion")
"""What the paper's tables hold, with the true PSNR beside its convention."""


def fusion_scores(
    visible: U8, infrared: U8, fused: U8, names: Sequence[str] = OF_THE_PAPER
) -> dict[str, float]:
    """Measure the named scores of grey images."""
    return {name: FUSION_METRICS[name].of(visible, infrared, fused) for name in names}


def fusion_columns(names: Sequence[str] = OF_THE_PAPER) -> tuple[Column, ...]:
    """Return the columns of what `fusion_scores` measures, in its order."""
    return tuple(FUSION_METRICS[name].column for name in names)


def _differences(image: U8) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    levels = image.astype(np.float64)
    return np.diff(levels, axis=1), np.diff(levels, axis=0)
