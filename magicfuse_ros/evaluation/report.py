"""Tables of the pictures: reconstruction, restoration, imagined infrared.

Every table is a function of an `Evaluation`. The same engine and images give the same table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from magicfuse_ros.evaluation import metrics
from magicfuse_ros.evaluation.baselines import BaselineError, ZeroDce, clahe
from magicfuse_ros.evaluation.metrics import U8, grey
from magicfuse_ros.evaluation.scenes import Scene, has_clean, has_infrared
from magicfuse_ros.evaluation.subject import DEGRADED, Evaluation
from magicfuse_ros.evaluation.tables import Column, Row, Scores, Table
from magicfuse_ros.training.degradation_mixes import RECIPES

_SHARE_OF_ONE = 0.25


def autoencoder_table(evaluation: Evaluation) -> Table:
    """E and D: what is lost by encoding and decoding."""
    inference, scores = evaluation.inference(), Scores()

    def measure(row: str, image: U8) -> None:
        decoded = inference.reconstruct(image)
        scores.add([row], psnr=metrics.psnr_db(decoded, image), ssim=metrics.ssim(decoded, image))

    for scene in evaluation.under(DEGRADED, has_clean, "autoencoder, visible"):
        measure("visible, clean", scene.visible)
        measure("visible, degraded", scene.degraded)
    for scene in evaluation.under("none", has_infrared, "autoencoder, infrared"):
        measure("infrared", _real_infrared(scene)[..., None].repeat(3, axis=2))
    columns = (
        Column("image"), Column("images"), Column("PSNR (dB)"), Column("lowest PSNR (dB)"),
        Column("SSIM", 3),
    )  # fmt: skip
    rows: list[Row] = [
        (row, len(psnr := scores.values(row, "psnr")), scores.mean(row, "psnr"), min(psnr),
         scores.mean(row, "ssim"))
        for row in scores.rows()
    ]  # fmt: skip
    return Table("Autoencoder: reconstruction", columns, tuple(rows), source=evaluation.by_model)


def restoration_table(evaluation: Evaluation) -> Table:
    """Ψ: restored against clean, for each degradation and mixed, beside the baselines."""
    scores = Scores()
    rivals: dict[str, Callable[[U8], U8]] = {"input": lambda image: image, "CLAHE": clahe}
    note = "PSNR of RGB in dB and SSIM against the clean image, averaged over images."
    try:
        rivals["Zero-DCE++"] = ZeroDce.from_package().enhance
    except BaselineError as error:
        note += f" {error}."
    methods = dict(rivals)
    methods["Ψ"] = lambda image: evaluation.fuse(image).enhanced
    for condition in RECIPES:
        share = 1.0 if condition == DEGRADED else _SHARE_OF_ONE
        for scene in evaluation.under(condition, has_clean, "restoration", share):
            if condition != "none" and np.array_equal(scene.degraded, scene.visible):
                continue  # its PSNR is infinite, and it has a row of its own
            rows = [condition]
            if condition == DEGRADED:
                rows += [f"{condition}, {'night' if scene.night else 'day'}"]
            for name, method in methods.items():
                result = method(scene.degraded)
                scores.add(
                    rows,
                    **{
                        f"{name} PSNR": metrics.psnr_db(result, scene.visible),
                        f"{name} SSIM": metrics.ssim(result, scene.visible),
                    },
                )
    columns = (
        Column("condition"), Column("images"), *(Column(f"{name} PSNR") for name in methods),
        Column("gain over input"), Column("gain over best"),
        *(Column(f"{name} SSIM", 3) for name in methods),
    )  # fmt: skip
    rows_of_table: list[Row] = []
    for row in _parts_first(scores.rows()):
        psnr = {name: scores.mean(row, f"{name} PSNR") for name in methods}
        best = max(psnr[name] for name in rivals)
        gains = (psnr["Ψ"] - psnr["input"], psnr["Ψ"] - best)
        if math.isinf(psnr["input"]):
            gains = (math.nan, math.nan)
        ssim = [scores.mean(row, f"{name} SSIM") for name in methods]
        count = len(scores.values(row, "Ψ PSNR"))
        rows_of_table.append((row, count, *psnr.values(), *gains, *ssim))
    note += " Rows of degradations leave out images that it left as they were."
    title = "Ψ: restoration of the visible image"
    return Table(title, columns, tuple(rows_of_table), note, evaluation.by_engine)


def infrared_table(evaluation: Evaluation) -> Table:
    """Φ: imagined infrared against the real one, and how much people stand out in it."""
    scores = Scores()
    for condition in (DEGRADED, "none"):
        for scene in evaluation.under(condition, has_infrared, "infrared"):
            real = _real_infrared(scene)
            light = grey(scene.visible)
            imagined = evaluation.fuse(scene.degraded).infrared
            time = "night" if scene.night else "day"
            rows = [f"{condition}, {part}" for part in ("all", time, scene.source)]
            scores.add(
                rows,
                psnr=metrics.psnr_db(imagined, real),
                grey_psnr=metrics.psnr_db(light, real),
                ssim=metrics.ssim(imagined, real),
                grey_ssim=metrics.ssim(light, real),
            )
            pictures = {"real": real, "imagined": imagined, "grey": light}
            add_people(scores, rows, scene, pictures)
    columns = (
        Column("input"), Column("images"), Column("Φ PSNR (dB)"), Column("grey PSNR (dB)"),
        Column("gain (dB)"), Column("Φ SSIM", 3), Column("grey SSIM", 3), Column("people"),
        Column("real contrast", 1), Column("Φ contrast", 1),
        Column("Φ share (%)", 0), Column("grey share (%)", 0),
    )  # fmt: skip
    rows_of_table: list[Row] = []
    for row in _parts_first(scores.rows()):
        psnr, grey_psnr = scores.mean(row, "psnr"), scores.mean(row, "grey_psnr")
        real_contrast = scores.mean(row, "real")
        shares = [100.0 * scores.mean(row, name) / real_contrast for name in ("imagined", "grey")]
        rows_of_table.append((
            row, len(scores.values(row, "psnr")), psnr, grey_psnr, psnr - grey_psnr,
            scores.mean(row, "ssim"), scores.mean(row, "grey_ssim"), _people(scores, row),
            real_contrast, scores.mean(row, "imagined"), *shares,
        ))  # fmt: skip
    note = (
        "Real infrared on the common scale; grey is the luminance of the clean visible image. "
        "Contrast: mean inside a person's box minus the ring around it, in grey levels, averaged "
        "over boxes; share: of the real infrared's."
    )
    title = "Φ: imagined infrared"
    return Table(title, columns, tuple(rows_of_table), note, evaluation.by_engine)


def _parts_first(rows: Sequence[str]) -> list[str]:
    """Order the rows `condition, part`: conditions as they came, day and night before datasets."""
    conditions = list(dict.fromkeys(row.partition(", ")[0] for row in rows))
    parts = ("", "all", "day", "night")

    def place(row: str) -> tuple[int, int]:
        condition, _, part = row.partition(", ")
        return conditions.index(condition), parts.index(part) if part in parts else len(parts)

    return sorted(rows, key=place)


def add_people(scores: Scores, rows: Sequence[str], scene: Scene, pictures: dict[str, U8]) -> None:
    """Add the contrast of every person in each picture, to the columns of the pictures' names."""
    others = [box for _, box in scene.boxes or ()]
    for box in scene.people():
        contrast = {
            name: metrics.box_contrast(image, box, others) for name, image in pictures.items()
        }
        if not any(math.isnan(value) for value in contrast.values()):
            scores.add(rows, **contrast)


def _people(scores: Scores, row: str) -> int:
    return len(scores.values(row, "imagined"))


def _real_infrared(scene: Scene) -> U8:
    if scene.infrared is None:
        raise ValueError(f"{scene.source}/{scene.name} has no infrared image; use has_infrared")
    return scene.infrared
