"""Image fusion, restoration and segmentation metrics.

Images are uint8 in [0, 255]: grey (H, W), or RGB (H, W, 3) where a function says so. A score that
the images do not define (no edges, no pixels) is NaN, and averages must leave it out. SSIM, PSNR
and the confusion matrix are torchmetrics'; what no library has is written here. torchmetrics takes
as long to import as PyTorch, so each function imports it when it is called.

>>> clean = np.full((16, 16), 100, np.uint8)
>>> round(psnr_db(clean + 10, clean), 2), psnr_db(clean, clean)
(28.13, inf)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magicfuse_ros.model.labels import UNKNOWN

U8: TypeAlias = NDArray[np.uint8]
PixelBox: TypeAlias = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in pixels, x1 and y1 outside."""

FUSION_CONVENTION_DB = 20.0 * math.log10(255.0)
"""What the fusion papers' PSNR, 20·log10(255/√MSE) with MSE on 0..1 data, adds to the true one."""

# Xydeas and Petrovic, "Objective image fusion performance measure", 2000: Γ, κ, σ of the sigmoid
# for preserved edge strength and for preserved edge orientation.
_STRENGTH = (0.9994, -15.0, 0.5)
_ORIENTATION = (0.9879, -22.0, 0.8)

# The ring around a box is half the box's size wide on each side, and never thinner than this.
_RING = 0.5
_THINNEST_RING = 2


def grey(image: U8) -> U8:
    """BT.601 luminance (H, W) of an RGB image (H, W, 3)."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def entropy(image: U8) -> float:
    """EN: entropy of the grey-level histogram, in bits, 0 to 8.

    >>> entropy(np.arange(256, dtype=np.uint8).reshape(16, 16))
    8.0
    """
    return _entropy(np.bincount(image.ravel(), minlength=256))


def mutual_information(first: U8, second: U8) -> float:
    """Mutual information of two grey images' levels from their 256 × 256 histogram, in bits.

    >>> image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    >>> mutual_information(image, 255 - image), mutual_information(image, np.zeros_like(image))
    (8.0, 0.0)
    """
    _same_size(first, second)
    joint = np.bincount(first.ravel().astype(np.int64) * 256 + second.ravel(), minlength=65536)
    table = joint.reshape(256, 256)
    information = _entropy(table.sum(axis=1)) + _entropy(table.sum(axis=0)) - _entropy(joint)
    return max(0.0, information)


def fusion_mutual_information(visible: U8, infrared: U8, fused: U8) -> float:
    """MI: MI(visible, fused) + MI(infrared, fused), in bits; all grey."""
    return mutual_information(visible, fused) + mutual_information(infrared, fused)


def qabf(visible: U8, infrared: U8, fused: U8) -> float:
    """Qabf: how much of the two sources' edges is kept, 0 to 0.975 (a sigmoid never quite ends).

    Xydeas and Petrovic (2000) with Sobel gradients and weights equal to the sources' edge strength.
    An edge's orientation has no direction, so angles that differ by π agree. All images are grey;
    NaN where neither source has an edge.

    >>> edge = np.zeros((16, 16), np.uint8)
    >>> edge[:, 8:] = 200
    >>> flat = np.zeros_like(edge)
    >>> round(qabf(edge, flat, fused=edge), 3), round(qabf(edge, flat, fused=flat), 3)
    (0.975, 0.0)
    """
    _same_size(visible, fused)
    _same_size(infrared, fused)
    strength, angle = _edges(fused)
    kept = total = 0.0
    for source in (visible, infrared):
        own_strength, own_angle = _edges(source)
        larger = np.maximum(strength, own_strength)
        ratio = np.minimum(strength, own_strength) / np.where(larger > 0.0, larger, 1.0)
        turn = np.abs(np.abs(angle - own_angle) - math.pi / 2) / (math.pi / 2)
        quality = _sigmoid(ratio, *_STRENGTH) * _sigmoid(turn, *_ORIENTATION)
        kept += float((quality * own_strength).sum())
        total += float(own_strength.sum())
    return kept / total if total > 0.0 else math.nan


def psnr_db(image: U8, reference: U8) -> float:
    """PSNR in dB, peak 255; grey or RGB. Infinite where the two are equal."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    _same_size(image, reference)
    return float(peak_signal_noise_ratio(_tensor(image), _tensor(reference), data_range=1.0))


def psnr_two_sources_db(visible: U8, infrared: U8, fused: U8) -> float:
    """PSNR in dB, the true one, of a fused grey image; squared error averaged over both sources."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    _same_size(visible, fused)
    _same_size(infrared, fused)
    both = torch.cat([_tensor(visible), _tensor(infrared)])
    twice = torch.cat([_tensor(fused)] * 2)
    return float(peak_signal_noise_ratio(twice, both, data_range=1.0))


def psnr_fusion_convention_db(visible: U8, infrared: U8, fused: U8) -> float:
    """PSNR as fusion papers print it: `psnr_two_sources_db` + 48.13 dB, hence values near 63."""
    return psnr_two_sources_db(visible, infrared, fused) + FUSION_CONVENTION_DB


def ssim(image: U8, reference: U8) -> float:
    """SSIM, Gaussian window of σ 1.5 (11 × 11), averaged over the channels of grey or RGB."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    _same_size(image, reference)
    # Channels stand in a batch: the metric averages over both. float32, as the 11 × 11 convolution
    # of float64 takes a gigabyte; what that costs shows in flat images alone, below 0.005.
    first, second = (_tensor(picture).transpose(0, 1).float() for picture in (image, reference))
    value = structural_similarity_index_measure(first, second, sigma=1.5, data_range=1.0)
    if not isinstance(value, Tensor):
        raise TypeError(f"torchmetrics returned {type(value).__name__} for SSIM; a tensor expected")
    return float(value)


def ssim_two_sources(visible: U8, infrared: U8, fused: U8) -> float:
    """Mean of SSIM(fused, visible) and SSIM(fused, infrared); all grey."""
    return (ssim(fused, visible) + ssim(fused, infrared)) / 2.0


def box_contrast(image: U8, box: PixelBox, others: Sequence[PixelBox] = ()) -> float:
    """Mean inside a box minus mean of the ring around it, in grey levels.

    The ring is half the box's size wide, cut at the image's border, and leaves out `others`, which
    are objects themselves. NaN where nothing of the ring is left.

    >>> image = np.zeros((32, 32), np.uint8)
    >>> image[8:16, 8:16] = 50
    >>> box_contrast(image, (8, 8, 16, 16))
    50.0
    """
    x0, y0, x1, y1 = box
    wide = max(_THINNEST_RING, round((x1 - x0) * _RING))
    high = max(_THINNEST_RING, round((y1 - y0) * _RING))
    ring = np.zeros(image.shape, np.bool_)
    ring[max(0, y0 - high) : y1 + high, max(0, x0 - wide) : x1 + wide] = True
    for left, top, right, bottom in (box, *others):
        ring[top:bottom, left:right] = False
    if not ring.any():
        return math.nan
    return float(image[y0:y1, x0:x1].mean() - image[ring].mean())


class Confusion:
    """Pixels counted by true and predicted class; pixels whose truth is 255 do not count.

    >>> counted = Confusion(classes=2)
    >>> counted.add(np.array([[0, 0, 1, 1]], np.uint8), truth=np.array([[0, 1, 1, 255]], np.uint8))
    >>> counted.iou().tolist()
    [0.5, 0.5]
    """

    def __init__(self, classes: int) -> None:
        from torchmetrics.classification import MulticlassConfusionMatrix

        self._metric = MulticlassConfusionMatrix(classes, ignore_index=UNKNOWN)

    def add(self, predicted: U8, truth: U8) -> None:
        """Count an image's class ids, (H, W) each; predictions have no 255."""
        _same_size(predicted, truth)
        self._metric.update(
            torch.from_numpy(predicted.astype(np.int64)), torch.from_numpy(truth.astype(np.int64))
        )

    def matrix(self) -> NDArray[np.int64]:
        """Pixel counts, one row a true class and one column a predicted one."""
        return np.asarray(self._metric.confmat, np.int64)

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class; NaN for a class that the truth does not hold."""
        matrix = self.matrix()
        hit, truth = np.diag(matrix), matrix.sum(axis=1)
        union = truth + matrix.sum(axis=0) - hit
        return np.where(truth > 0, hit / np.maximum(union, 1), np.nan)

    def recall(self) -> NDArray[np.float64]:
        """Share of each class's pixels that is found; NaN for a class that the truth lacks."""
        matrix = self.matrix()
        truth = matrix.sum(axis=1)
        return np.where(truth > 0, np.diag(matrix) / np.maximum(truth, 1), np.nan)


def correlation(first: NDArray[np.generic], second: NDArray[np.generic]) -> float:
    """Pearson's correlation of two arrays of one shape; NaN where one of them is constant."""
    a, b = (each.astype(np.float64) - each.mean() for each in (first, second))
    norm = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0.0 else math.nan


def mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Mean of the values that are not NaN; NaN where there are none."""
    known = [float(value) for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _entropy(counts: NDArray[np.int64]) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(max(0.0, -(share * np.log2(share)).sum()))


def _edges(image: U8) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sobel edge strength, and orientation in [-π/2, π/2]."""
    x = np.asarray(cv2.Sobel(image, cv2.CV_64F, 1, 0), np.float64)
    y = np.asarray(cv2.Sobel(image, cv2.CV_64F, 0, 1), np.float64)
    steep = np.where(y >= 0.0, math.pi / 2, -math.pi / 2)
    return np.hypot(x, y), np.where(x == 0.0, steep, np.arctan(y / np.where(x == 0.0, 1.0, x)))


def _sigmoid(
    value: NDArray[np.float64], top: float, slope: float, middle: float
) -> NDArray[np.float64]:
    return np.asarray(top / (1.0 + np.exp(slope * (value - middle))), np.float64)


def _tensor(image: U8) -> Tensor:
    """(1, C, H, W) float64 in [0, 1]."""
    planes = image[None] if image.ndim == 2 else np.moveaxis(image, 2, 0)
    return torch.from_numpy(planes.astype(np.float64) / 255.0)[None]


def _same_size(image: U8, reference: U8) -> None:
    if image.shape != reference.shape:
        raise ValueError(
            f"images are {image.shape} and {reference.shape}; bring them to one shape first"
        )
