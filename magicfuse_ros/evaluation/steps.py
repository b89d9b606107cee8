"""Fewer steps: what each number of DDIM steps costs and gives, and which should be the default."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace

from magicfuse_ros.evaluation import metrics
from magicfuse_ros.evaluation.fusion_metrics import OF_THE_PAPER, fusion_columns, fusion_scores
from magicfuse_ros.evaluation.metrics import grey
from magicfuse_ros.evaluation.report import add_people
from magicfuse_ros.evaluation.scenes import has_clean_pair, has_pixel_labels
from magicfuse_ros.evaluation.segmentation import confusion
from magicfuse_ros.evaluation.subject import DEGRADED, Evaluation
from magicfuse_ros.evaluation.tables import Column, Row, Scores, Table

STEPS = (25, 8, 4, 2, 1)
"""The first is the reference of the rule."""
MAY_LOSE = (0.5, 0.5, 1.0)
"""What the default loses less of than the reference: dB restored, dB infrared, points of mIoU."""


def fewest_steps(judged: Mapping[int, tuple[float, float, float]]) -> int | None:
    """Return the fewest steps that lose less than `MAY_LOSE` against the reference.

    `judged` has for each number of steps the PSNR in dB of the restored image and of the imagined
    infrared, and mIoU in percent. None fits where the reference has a NaN: nothing to measure.
    """
    reference = judged[STEPS[0]]
    fitting = [
        steps
        for steps, values in judged.items()
        if all(
            best - value < most
            for best, value, most in zip(reference, values, MAY_LOSE, strict=True)
        )
    ]
    return min(fitting, default=None)


def steps_table(evaluation: Evaluation) -> Table:
    """Quality and time at 25, 8, 4, 2 and 1 steps of the same weights, and the rule's choice."""
    rows: list[Row] = []
    judged: dict[int, tuple[float, float, float]] = {}
    for steps in STEPS:
        several, scores = replace(evaluation, steps=steps), Scores()
        row = str(steps)
        for scene in several.under(DEGRADED, has_clean_pair, f"{steps} steps"):
            made = several.fuse(scene.degraded)
            if scene.infrared is None:
                continue
            scores.add(
                [row],
                restored=metrics.psnr_db(made.enhanced, scene.visible),
                infrared=metrics.psnr_db(made.infrared, scene.infrared),
                milliseconds=sum(made.stage_ms.values()),
                **fusion_scores(grey(scene.visible), scene.infrared, grey(made.magimg)),
            )
            pictures = {"imagined": made.infrared, "magimg": grey(made.magimg)}
            add_people(scores, [row], scene, pictures)
        miou = metrics.mean(confusion(several, DEGRADED, has_pixel_labels).iou())
        restored, infrared = scores.mean(row, "restored"), scores.mean(row, "infrared")
        judged[steps] = (restored, infrared, 100.0 * miou)
        times = scores.values(row, "milliseconds")
        rows.append((
            row, len(times), restored, infrared,
            *(scores.mean(row, name) for name in OF_THE_PAPER),
            len(scores.values(row, "magimg")), scores.mean(row, "imagined"),
            scores.mean(row, "magimg"), 100.0 * miou,
            statistics.median(times) if times else float("nan"),
        ))  # fmt: skip
    columns = (
        Column("steps"), Column("images"), Column("restored PSNR (dB)"),
        Column("infrared PSNR (dB)"), *fusion_columns(), Column("people"),
        Column("Φ contrast", 1), Column("MagImg contrast", 1), Column("mIoU (%)", 1),
        Column("ms", 1),
    )  # fmt: skip
    decibels, _, points = MAY_LOSE
    chosen, diffusion = fewest_steps(judged), evaluation.model.config.diffusion
    note = (
        f"Input: {DEGRADED}. mIoU: on images labelled by hand. Contrast of people as for Φ. ms: "
        "median of one image through the engine, its enhanced image and infrared included; the "
        "report's load says how busy the machine was. The default should be the fewest steps "
        f"that lose less than {decibels} dB of either PSNR and less than {points:g} point of mIoU "
        f"against {STEPS[0]}: "
        + (
            "that cannot be told without pairs and labels."
            if chosen is None
            else f"here {chosen}; the model's own number is {diffusion.steps}, and it was trained "
            f"for {' and '.join(map(str, diffusion.trained_steps))}."
        )
    )
    return Table("Fewer steps", columns, tuple(rows), note, evaluation.by_engine)
