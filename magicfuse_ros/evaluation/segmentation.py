"""Tables of S (IoU against labels and weak masks) and of w_r, which its map modulates."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from magicfuse_ros.evaluation.inference import Inference
from magicfuse_ros.evaluation.metrics import U8, Confusion, mean
from magicfuse_ros.evaluation.scenes import (
    Needs,
    has_anything,
    has_pixel_labels,
    has_weak_masks,
)
from magicfuse_ros.evaluation.subject import DEGRADED, Evaluation
from magicfuse_ros.evaluation.tables import Column, Row, Table
from magicfuse_ros.model.labels import UNKNOWN, LabelSet
from magicfuse_ros.training.datasets.label_maps import CANONICAL, from_canonical


def confusion(
    evaluation: Evaluation,
    condition: str,
    needs: Needs,
    mask_of: Callable[[U8], U8] | None = None,
) -> Confusion:
    """Count the pixels of every scene that has the labels asked for.

    `mask_of` makes (H, W) class ids of an (H, W, 3) RGB picture; None takes the engine's mask.
    """
    made = mask_of or (lambda image: evaluation.fuse(image).mask)
    counted = Confusion(len(evaluation.model.labels))
    for scene in evaluation.under(condition, needs, "segmentation"):
        if scene.labels is not None:
            counted.add(made(scene.degraded), scene.labels)
    return counted


def translation(said: LabelSet, scored: LabelSet) -> NDArray[np.uint8]:
    """Return a table (256,) from ids of a set to those of another, by what the classes are called.

    A class that the other set lacks counts as its unlabeled one, or as one id more than it has.
    """
    to_said, to_scored = from_canonical(said), from_canonical(scored)
    names = {name.lower(): index for index, name in enumerate(scored.names())}
    none = next((names[n] for n in ("unlabeled", "background") if n in names), len(scored))
    table = np.full(256, none, np.uint8)
    for label in said.labels:
        own = label.name.replace("_", " ").lower()
        meant = [name for k, name in enumerate(CANONICAL) if to_said[k] == label.id]
        name = own if own in meant or not meant else meant[0]
        if name in CANONICAL and to_scored[CANONICAL.index(name)] != UNKNOWN:
            table[label.id] = to_scored[CANONICAL.index(name)]
    return table


def segmentation_table(evaluation: Evaluation) -> Table:
    """IoU of each class where every pixel is labelled."""
    source = evaluation.by_engine
    runs = {
        f"IoU, {DEGRADED} (%)": confusion(evaluation, DEGRADED, has_pixel_labels),
        "IoU, clean (%)": confusion(evaluation, "none", has_pixel_labels),
    }
    if evaluation.unaided is not None:
        beside = Inference(evaluation.unaided, evaluation.steps, unaided=True)
        name = f"IoU, {DEGRADED}, without Ψ and Φ (%)"
        runs[name] = confusion(
            evaluation, DEGRADED, has_pixel_labels, lambda image: beside.fuse(image).mask
        )
        source += f" Without Ψ and Φ: {evaluation.by_model}"
    pixels = next(iter(runs.values())).matrix().sum(axis=1)
    iou = [100.0 * run.iou() for run in runs.values()]
    share = 100.0 * pixels / max(1, pixels.sum())
    names = evaluation.model.labels.names()
    rows: list[Row] = [
        (name, float(share[k]), *(float(run[k]) for run in iou))
        for k, name in enumerate(names)
        if pixels[k] > 0
    ]
    rows.append(("mIoU", math.nan, *(mean(run) for run in iou)))
    columns = (Column("class"), Column("pixels (%)", 1), *(Column(name, 1) for name in runs))
    note = "mIoU: mean over the classes that the labels hold."
    return Table("S: IoU on images labelled by hand", columns, tuple(rows), note, source)


def weak_mask_table(evaluation: Evaluation) -> Table:
    """Person, car and bike against masks made from boxes."""
    labels = evaluation.model.labels
    known = Confusion(len(labels))
    kinds = [kind for kind in ("person", "car", "bike") if kind in labels.names()]
    inside = dict.fromkeys(kinds, 0)
    claimed = dict.fromkeys(kinds, 0)
    for scene in evaluation.under(DEGRADED, has_weak_masks, "segmentation, weak masks"):
        if scene.labels is None:
            continue
        mask = evaluation.fuse(scene.degraded).mask
        known.add(mask, scene.labels)
        for kind in kinds:
            boxed = np.zeros(mask.shape, np.bool_)
            for name, (x0, y0, x1, y1) in scene.boxes or ():
                if name == kind:
                    boxed[y0:y1, x0:x1] = True
            found = mask == labels.id_of(kind)
            claimed[kind] += int(found.sum())
            inside[kind] += int((found & boxed).sum())
    iou, recall, pixels = known.iou(), known.recall(), known.matrix().sum(axis=1)
    rows: list[Row] = [
        (
            kind, int(pixels[labels.id_of(kind)]), 100.0 * float(iou[labels.id_of(kind)]),
            100.0 * float(recall[labels.id_of(kind)]),
            100.0 * inside[kind] / claimed[kind] if claimed[kind] else math.nan,
        )
        for kind in kinds
    ]  # fmt: skip
    columns = (
        Column("class"), Column("known pixels"), Column("IoU on known pixels (%)", 1),
        Column("recall (%)", 1), Column("found inside boxes of the class (%)", 1),
    )  # fmt: skip
    note = (
        f"Input: {DEGRADED}. Weak masks know only pixels of boxed objects, so their IoU does not "
        "see what is claimed elsewhere; the last column does."
    )
    title = "S: objects against weak masks"
    return Table(title, columns, tuple(rows), note, evaluation.by_engine)


def weight_table(evaluation: Evaluation) -> Table:
    """w_r inside and outside thermal regions: a collapse is w_r near 1 everywhere."""
    inference = evaluation.inference()
    regions: dict[str, list[NDArray[np.float32]]] = {}
    positions = 0
    for scene in evaluation.under(DEGRADED, has_anything, "w_r"):
        step = inference.fuse(scene.degraded).step
        w_r = np.moveaxis(step.w_r[0].cpu().numpy(), 0, -1)
        thermal = step.radiation[0, 0].cpu().numpy() > 0
        positions += thermal.size
        people = np.zeros(thermal.shape, np.bool_)
        stride = scene.visible.shape[0] // thermal.shape[0]
        for x0, y0, x1, y1 in scene.people():
            people[y0 // stride : -(-y1 // stride), x0 // stride : -(-x1 // stride)] = True
        for name, region in (
            ("thermal by S (M = 1)", thermal),
            ("elsewhere (M = 0)", ~thermal),
            ("in people's boxes", people),
        ):
            regions.setdefault(name, []).append(w_r[region])
    rows: list[Row] = []
    for name, parts in regions.items():
        values = np.concatenate(parts)
        share = 100.0 * len(values) / positions
        if values.size == 0:
            rows.append((name, share, *(math.nan,) * 6))
            continue
        percentiles = (float(v) for v in np.percentile(values, (5, 50, 95)))
        near_one = 100.0 * float((values > 0.95).mean())
        row = (float(values.mean()), float(values.std()), *percentiles, near_one)
        rows.append((name, share, *row))
    columns = (
        Column("region"), Column("area (%)", 1), Column("mean w_r"), Column("std"), Column("5 %"),
        Column("median"), Column("95 %"), Column("above 0.95 (%)", 1),
    )  # fmt: skip
    tau = inference.settings.tau
    note = f"Input: {DEGRADED}; all latent channels. Eq. 11 holds w_r to τ = {tau} where M = 1."
    title = "w_r: weight of Ψ in the fused noise"
    return Table(title, columns, tuple(rows), note, evaluation.by_model)
