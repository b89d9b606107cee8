"""Video: flicker and ghosting of MagImg with and without temporal consistency."""

from __future__ import annotations

import itertools
import zlib

import numpy as np

from magicfuse_ros.evaluation import metrics
from magicfuse_ros.evaluation.clip_degradation import ClipNoise
from magicfuse_ros.evaluation.metrics import U8
from magicfuse_ros.evaluation.motion import flicker, ghosting, motion
from magicfuse_ros.evaluation.scenes import Video
from magicfuse_ros.evaluation.subject import Evaluation
from magicfuse_ros.evaluation.tables import Column, Row, Table
from magicfuse_ros.training.degradation_mixes import degrade, named_recipe

CONDITIONS = ("none", "noise", "night")
"""Recipes whose randomness over time is that of the sensor; rain would need falling drops."""
TEMPORAL = (None, 0.0, 0.5, 0.7, 0.9)
"""None fuses each frame by itself."""


def degraded(video: Video, condition: str) -> list[U8]:
    """Return the frames under one recipe of one strength, each with noise of its own."""
    seed = zlib.crc32(f"{video.name}/{condition}".encode())
    night = video.night or not video.clean
    recipe = named_recipe(condition, np.random.default_rng((seed, 1)), night=night)
    return [degrade(image, ClipNoise(seed, t), recipe) for t, image in enumerate(video.frames)]


def video_table(evaluation: Evaluation) -> Table:
    """Flicker, ghosting and PSNR of every video's MagImgs for each weight of the picture before."""
    rows: list[Row] = []
    for video in evaluation.scenes.videos(evaluation.limit):
        motions = [motion(*pair) for pair in itertools.pairwise(video.frames)]
        for condition in CONDITIONS:
            evaluation.progress(f"video: {video.name}, {condition}")
            frames = degraded(video, condition)
            alone = shown_at(evaluation, None, frames)
            flicker_alone = flicker(alone, motions)
            for weight in TEMPORAL:
                shown = alone if weight is None else shown_at(evaluation, weight, frames)
                psnr = map(metrics.psnr_db, shown, video.frames)
                flickering = flicker(shown, motions)
                name = "each by itself" if weight is None else f"{weight:g}"
                rows.append((
                    f"{condition}, {video.name}", name, len(frames), flicker(frames, motions),
                    flickering, 100.0 * (flickering / flicker_alone - 1.0),
                    100.0 * ghosting(shown, alone, video.frames, motions),
                    metrics.mean(list(psnr)) if video.clean else float("nan"),
                ))  # fmt: skip
    columns = (
        Column("input"), Column("temporal"), Column("frames"), Column("input flicker"),
        Column("MagImg flicker"), Column("change (%)", 0), Column("ghosting (%)", 0),
        Column("PSNR (dB)"),
    )  # fmt: skip
    note = (
        "Flicker: mean absolute change along the scene's motion, in grey levels of 255. Ghosting: "
        "share of the picture before that stays where the scene moved. PSNR of MagImg against the "
        "clean visible image, where there is one. Frames are neighbours in the dataset."
    )
    title = "Video: MagImg with and without the picture before"
    return Table(title, columns, tuple(rows), note, evaluation.by_engine)


def shown_at(evaluation: Evaluation, temporal: float | None, frames: list[U8]) -> list[U8]:
    """Fuse the frames of a stream, in order of time, with this weight of the picture before."""
    evaluation.engine.forget()
    return [evaluation.fuse(frame, temporal=temporal).magimg for frame in frames]
