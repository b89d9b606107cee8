"""Fewer steps: what each number of DDIM steps costs and gives."""

from __future__ import annotations

import dataclasses
import statistics

from magicfuse_ros.evaluation import metrics
from magicfuse_ros.evaluation.metrics import grey
from magicfuse_ros.evaluation.report import (
    DEGRADED,
    FUSION_COLUMNS,
    FUSION_SCORES,
    Evaluation,
    fusion_scores,
)
from magicfuse_ros.evaluation.scenes import has_clean_pair, has_pixel_labels
from magicfuse_ros.evaluation.segmentation import confusion
from magicfuse_ros.evaluation.tables import Column, Row, Scores, Table

STEPS = (25, 8, 4, 2, 1)


def steps_table(evaluation: Evaluation) -> Table:
    """Quality and time at 25, 8, 4, 2 and 1 steps of the same weights."""
    rows: list[Row] = []
    for steps in STEPS:
        several = dataclasses.replace(evaluation, steps=steps)
        inference, scores = several.inference(), Scores()
        row = str(steps)
        for scene in several.under(DEGRADED, has_clean_pair, f"{steps} steps"):
            outcome = inference.fuse(scene.degraded)
            if scene.infrared is None:
                continue
            scores.add(
                [row],
                restored=metrics.psnr_db(outcome.enhanced, scene.visible),
                infrared=metrics.psnr_db(grey(outcome.infrared), scene.infrared),
                milliseconds=outcome.milliseconds,
                **fusion_scores(outcome, scene),
            )
        miou = metrics.mean(confusion(several, inference, DEGRADED, has_pixel_labels).iou())
        times = scores.values(row, "milliseconds")
        rows.append((
            row, len(times), scores.mean(row, "restored"), scores.mean(row, "infrared"),
            *(scores.mean(row, name) for name in FUSION_SCORES), 100.0 * miou,
            statistics.median(times) if times else float("nan"),
        ))  # fmt: skip
    columns = (
        Column("steps"), Column("images"), Column("restored PSNR (dB)"),
        Column("infrared PSNR (dB)"), *FUSION_COLUMNS,
        Column("mIoU (%)", 1), Column("ms", 1),
    )  # fmt: skip
    note = (
        f"Input: {DEGRADED}. ms: median of one image through plain PyTorch (encode, sample, decode "
        "MagImg and logits); the report's load says how busy the machine was."
    )
    return Table("Fewer steps", columns, tuple(rows), note)
