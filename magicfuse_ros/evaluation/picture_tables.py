"""Tables of what a driver sees: people in MagImg, heat where nobody is, and real nights."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from magicfuse_ros.evaluation import metrics
from magicfuse_ros.evaluation.baselines import clahe
from magicfuse_ros.evaluation.metrics import U8, PixelBox, grey
from magicfuse_ros.evaluation.scenes import has_clean, has_clean_pair
from magicfuse_ros.evaluation.subject import DEGRADED, Evaluation
from magicfuse_ros.evaluation.tables import Column, Row, Scores, Table

_SMALLEST = (8, 24)
"""Width and height in pixels from which a person has details to keep."""
_DETAIL_SIGMA = 2.0
_WINDOW, _MOST_LIGHT = 31, 8.0
"""Pixels a side, and grey levels that heat may add where nobody is."""
_DARK = 40.0
_LAMP = 230
_FLAT_SIGMA = 3.0
"""Blurred further than this, in grey levels, a patch is not flat."""


def people_table(evaluation: Evaluation) -> Table:
    """Whether people keep their details in MagImg and stand out, and have their shape in heat."""
    scores = Scores()
    for condition in ("none", DEGRADED):
        for scene in evaluation.under(condition, has_clean_pair, "people"):
            people = [box for box in scene.people() if _is_large(box)]
            if not people or scene.infrared is None:
                continue
            made, time = evaluation.fuse(scene.degraded), "night" if scene.night else "day"
            light = {"magimg": grey(made.magimg), "enhanced": grey(made.enhanced)}
            detail = {name: _detail(image) for name, image in light.items()}
            own, others = _detail(grey(scene.visible)), [box for _, box in scene.boxes or ()]
            for box in people:
                inside = np.s_[box[1] : box[3], box[0] : box[2]]
                lift = {
                    f"{name} contrast": metrics.box_contrast(image, box, others)
                    for name, image in {**light, "real": scene.infrared}.items()
                }
                if any(map(math.isnan, lift.values())):
                    continue
                kept = {
                    f"{name} detail": _likeness(image[inside], own[inside])
                    for name, image in detail.items()
                }
                shape = _likeness(made.infrared[inside], scene.infrared[inside])
                scores.add([f"{condition}, {time}"], shape=shape, **kept, **lift)
    names = (
        "magimg detail", "enhanced detail", "magimg contrast", "enhanced contrast",
        "real contrast", "shape",
    )  # fmt: skip
    rows: list[Row] = [
        (row, len(scores.values(row, "shape")), *(scores.mean(row, name) for name in names))
        for row in scores.rows()
    ]
    columns = (
        Column("input"), Column("people"), Column("detail, MagImg"), Column("detail, enhanced"),
        Column("contrast, MagImg", 1), Column("contrast, enhanced", 1),
        Column("contrast, real infrared", 1), Column("shape of the infrared"),
    )  # fmt: skip
    note = (
        "Detail: correlation of what is finer than a Gaussian of 2 pixels with the clean visible "
        "image's, inside a person's box. Contrast: mean inside the box minus the ring around it, "
        "in grey levels. Shape: correlation with the real infrared inside the box. People of at "
        f"least {_SMALLEST[0]}x{_SMALLEST[1]} pixels."
    )
    return Table("People", columns, tuple(rows), note, evaluation.by_engine)


def heat_table(evaluation: Evaluation) -> Table:
    """How much light heat adds to MagImg where there is nothing warm."""
    scores, inference = Scores(), evaluation.inference()
    for scene in evaluation.under("none", has_clean_pair, "heat"):
        if scene.boxes is None:
            continue
        added, time = inference.light_of_heat(scene.degraded), "night" if scene.night else "day"
        outside = np.ones(added.shape, np.bool_)
        for _, (x0, y0, x1, y1) in scene.boxes:
            outside[y0:y1, x0:x1] = False
        scores.add([time], outside=float(added[outside].mean()))
        if not scene.people():
            for name, light in (("any", added), ("cold", np.where(outside, added, 0.0))):
                most = float(cv2.blur(np.asarray(light, np.float32), (_WINDOW, _WINDOW)).max())
                scores.add([time], **{name: most, f"{name} bad": 100.0 * (most > _MOST_LIGHT)})
    rows: list[Row] = [
        (
            row, len(scores.values(row, "outside")), scores.mean(row, "outside"),
            len(scores.values(row, "any")),
            *(scores.mean(row, name) for name in ("any", "cold", "cold bad")),
        )
        for row in scores.rows()
    ]  # fmt: skip
    columns = (
        Column("input"), Column("images"), Column("outside boxes, mean", 1),
        Column("images without people"), Column("worst window", 1),
        Column("worst without vehicles", 1), Column(f"images above {_MOST_LIGHT:g} (%)", 0),
    )  # fmt: skip
    note = (
        "How much brighter heat makes MagImg, in grey levels, on clean images with boxes: "
        f"outside every box, and the largest mean of a {_WINDOW}x{_WINDOW} window of images that "
        "hold no people, the mean of these; without vehicles: light inside boxes does not count."
    )
    return Table("Heat where nobody is", columns, tuple(rows), note, evaluation.by_model)


def night_table(evaluation: Evaluation) -> Table:
    """Real nights: how bright, how noisy and how wide the lamps are, beside CLAHE."""
    scores = Scores()
    for scene in evaluation.under("none", has_clean, "night"):
        light = grey(scene.visible)
        if not scene.night or float(np.median(light)) >= _DARK:
            continue
        pictures = {"input": light, "CLAHE": grey(clahe(scene.visible))}
        made = evaluation.fuse(scene.visible)
        pictures |= {"enhanced": grey(made.enhanced), "MagImg": grey(made.magimg)}
        flat = _flat(light)
        for name, picture in pictures.items():
            noise = picture - cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 1.5)
            scores.add(
                [name],
                median=float(np.median(picture)),
                noise=float(noise[flat].std()) if flat.any() else math.nan,
                lamps=100.0 * float((picture >= _LAMP).mean()),
            )
    rows: list[Row] = [
        (row, len(scores.values(row, "median")), scores.mean(row, "median"),
         scores.mean(row, "noise"), scores.mean(row, "lamps"))
        for row in scores.rows()
    ]  # fmt: skip
    columns = (
        Column("picture"), Column("images"), Column("median luminance", 1),
        Column("noise of flat areas"), Column("lamps (% of the picture)"),
    )  # fmt: skip
    note = (
        f"Images taken at night whose median luminance is below {_DARK:.0f} of 255, as recorded. "
        "Noise: deviation from a blurred copy where the input is flat, in grey levels. Lamps: "
        f"pixels of {_LAMP} or more."
    )
    return Table("Real nights", columns, tuple(rows), note, evaluation.by_engine)


def _is_large(box: PixelBox) -> bool:
    return box[2] - box[0] >= _SMALLEST[0] and box[3] - box[1] >= _SMALLEST[1]


def _detail(image: U8) -> NDArray[np.float32]:
    plane = image.astype(np.float32)
    return np.asarray(plane - cv2.GaussianBlur(plane, (0, 0), _DETAIL_SIGMA), np.float32)


def _flat(image: U8) -> NDArray[np.bool_]:
    """Return where an image has no edges but only noise, (H, W)."""
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 3.0)
    mean = cv2.blur(smooth, (15, 15))
    deviation = np.sqrt(np.maximum(cv2.blur(smooth * smooth, (15, 15)) - mean * mean, 0.0))
    return np.asarray(deviation < _FLAT_SIGMA)


def _likeness(first: NDArray[np.generic], second: NDArray[np.generic]) -> float:
    """Return the correlation; 0 where one of the two is constant, and nothing like the other."""
    found = metrics.correlation(first, second)
    return 0.0 if math.isnan(found) else found
