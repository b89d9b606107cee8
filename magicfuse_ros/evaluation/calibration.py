"""Whether the confidence is what it says: the share of pixels that are right at each value of it.

The engine gives the confidence of the winning class alone, so a temperature acts on its log-odds:
p' = σ(logit(p)/T), which for two classes is temperature scaling (Guo et al., 2017) exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from magicfuse_ros.evaluation.metrics import U8
from magicfuse_ros.evaluation.protocol_run import Curves, Findings, NotThereError
from magicfuse_ros.evaluation.scenes import has_pixel_labels
from magicfuse_ros.evaluation.subject import DEGRADED, Evaluation
from magicfuse_ros.evaluation.tables import Column, Row, Table
from magicfuse_ros.model.labels import UNKNOWN

BINS = 15
"""Of equal width, as Guo et al. have them."""
_TEMPERATURES = np.geomspace(0.2, 10.0, 400)


class Reliability:
    """Pixels counted by their confidence, and how many of them are right.

    >>> counted = Reliability()
    >>> confidence = np.full((2, 5), 204, np.uint8)  # says 0.8
    >>> counted.add(confidence, np.arange(10).reshape(2, 5) < 6)  # 0.6 are right
    >>> round(counted.error(), 3)
    0.2
    """

    def __init__(self) -> None:
        self.pixels = np.zeros(256)
        self.right = np.zeros(256)

    def add(self, confidence: U8, right: NDArray[np.bool_]) -> None:
        """Count pixels: confidence times 255, and whether their class is the true one."""
        self.pixels += np.bincount(confidence.ravel(), minlength=256)
        self.right += np.bincount(confidence[right].ravel(), minlength=256)

    def join(self, other: Reliability) -> None:
        """Count the other's pixels too."""
        self.pixels += other.pixels
        self.right += other.right

    def bins(self, temperature: float = 1.0) -> NDArray[np.float64]:
        """Return (3, n): mean confidence, share of right pixels, and pixels of each held bin."""
        said = tempered(temperature)
        place = np.minimum((said * BINS).astype(np.int64), BINS - 1)
        pixels, right, total = (
            np.bincount(place, weights=weights, minlength=BINS)
            for weights in (self.pixels, self.right, self.pixels * said)
        )
        held = pixels > 0
        return np.stack([total[held] / pixels[held], right[held] / pixels[held], pixels[held]])

    def error(self, temperature: float = 1.0) -> float:
        """Return the expected calibration error (ECE), 0 to 1."""
        said, right, pixels = self.bins(temperature)
        return float((np.abs(said - right) * pixels).sum() / pixels.sum())

    def fitted(self) -> float:
        """Return the temperature under which what was right is likeliest."""

        def surprise(temperature: float) -> float:
            said = tempered(temperature)
            wrong = self.pixels - self.right
            return -float((self.right * np.log(said) + wrong * np.log(1.0 - said)).sum())

        return float(min(_TEMPERATURES, key=surprise))


def tempered(temperature: float) -> NDArray[np.float64]:
    """Return (256,): the probability that each confidence of 0 to 255 means at a temperature."""
    said = np.clip(np.arange(256) / 255.0, 0.5 / 255.0, 254.5 / 255.0)
    return np.asarray(1.0 / (1.0 + np.exp(-np.log(said / (1.0 - said)) / temperature)))


def calibration(evaluation: Evaluation) -> Findings:
    """Fit a temperature to the first half of the images labelled by hand, and judge it on the rest.

    Raises NotThereError if there are fewer than two such images.
    """
    fitted, judged = Reliability(), dict[str, Reliability]()
    for condition in ("none", DEGRADED):
        counted = []
        for scene in evaluation.under(condition, has_pixel_labels, "calibration"):
            if scene.labels is None:
                continue
            made, known = evaluation.fuse(scene.degraded), scene.labels != UNKNOWN
            counted.append(Reliability())
            counted[-1].add(made.confidence[known], (made.mask == scene.labels)[known])
        if len(counted) < 2:
            raise NotThereError("fewer than two images are labelled by hand")
        judged[condition] = Reliability()
        for index, image in enumerate(counted):
            (fitted if index < len(counted) // 2 else judged[condition]).join(image)
    temperature = fitted.fitted()
    rows: list[Row] = []
    curves: Curves = {}
    for condition, counts in judged.items():
        said, right, pixels = counts.bins()
        rows.append((
            condition, 100.0 * float(counts.right.sum() / counts.pixels.sum()),
            100.0 * float((said * pixels).sum() / pixels.sum()), 100.0 * counts.error(),
            100.0 * counts.error(temperature),
        ))  # fmt: skip
        lines = {"right as said": [(0.0, 0.0), (1.0, 1.0)]}
        for name, at in (("before", 1.0), ("after", temperature)):
            said, right, _ = counts.bins(at)
            lines[name] = [(float(x), float(y)) for x, y in zip(said, right, strict=True)]
        curves.setdefault("confidence", {})[f"share of right pixels, {condition}"] = lines
    columns = (
        Column("input"), Column("right pixels (%)", 1), Column("mean confidence (%)", 1),
        Column("ECE before (%)"), Column("ECE after (%)"),
    )  # fmt: skip
    note = (
        "ECE: expected calibration error, on images labelled by hand. The rows are of their second "
        f"half; the temperature that fits the first is {temperature:.2f}, and above 1 it says that "
        "the confidence is too high."
    )
    return Findings(
        (Table("Confidence", columns, tuple(rows), note, evaluation.by_engine),), curves
    )
