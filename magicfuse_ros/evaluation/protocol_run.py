"""A protocol carried out: pictures made of every scene, scored, and set beside the paper's rows."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from magicfuse_ros.evaluation.fusion_metrics import FUSION_METRICS, fusion_columns, fusion_scores
from magicfuse_ros.evaluation.metrics import U8, Confusion, grey, mean
from magicfuse_ros.evaluation.protocol import Kind, Point, Protocol
from magicfuse_ros.evaluation.scenes import Scene, ValidationSet
from magicfuse_ros.evaluation.segformer_training import train_segformer
from magicfuse_ros.evaluation.segmentation import translation
from magicfuse_ros.evaluation.subject import Evaluation
from magicfuse_ros.evaluation.tables import Cell, Column, Row, Scores, Table
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.sources.pictures import to_rgb8
from magicfuse_ros.training.datasets.cache import CacheSettings, training_size
from magicfuse_ros.training.datasets.frames import DatasetError, Frame, read_image
from magicfuse_ros.training.datasets.layouts import by_stem
from magicfuse_ros.training.degradation_mixes import Degradation, Recipe, degrade

TITLES: dict[Kind, str] = {
    "degraded": "input, degraded",
    "enhanced": "enhanced (Ψ)",
    "infrared": "imagined infrared (Φ)",
    "magimg": "MagImg",
    "visible": "visible alone, as recorded",
    "real_infrared": "real infrared alone",
}
_BY_ENGINE = {"enhanced", "infrared", "magimg"}

Curves = dict[str, dict[str, dict[str, list[tuple[float, float]]]]]
"""What is swept → score → line → points (setting, score)."""


class NotThereError(DatasetError):
    """The data folder has nothing that could be measured so."""


@dataclass(frozen=True)
class Findings:
    """What a protocol found: its tables, and its curves where a number is swept; or why nothing."""

    tables: tuple[Table, ...] = ()
    curves: Curves = field(default_factory=dict)
    note: str = ""


class ProtocolRun:
    """A protocol, and with what it is carried out.

    Parameters
    ----------
    protocol, subject
        What to measure, of which engine and model. The subject's `scenes` are not looked at; its
        `limit` holds for training and validation images beside those of the protocol.
    root, cache
        Folder of datasets, and that of decoded images.
    peers
        Folders of other methods' pictures, named as the dataset's, by the methods' names.
    checkpoint
        Of SegFormer; None begins with random weights.

    Raises DatasetError or ConfigError if no dataset of the protocol is there (`NotThereError`), a
    file is missing, or peers are given to a protocol with a sweep.
    """

    def __init__(
        self,
        protocol: Protocol,
        subject: Evaluation,
        root: Path,
        cache: Path,
        *,
        peers: Mapping[str, Path] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        if peers and protocol.sweep is not None:
            raise ConfigError("peers go with a protocol without a sweep; leave out --peer")
        found = [layout for layout in protocol.data if (root / layout).is_dir()]
        if not found:
            raise NotThereError(f"the data folder has none of {', '.join(protocol.data)}")
        self._protocol, self._subject, self._checkpoint = protocol, subject, checkpoint
        self._root, self._cache, self._layout = root, cache, found[0]
        self._peers = {name: (folder, by_stem(folder)) for name, folder in (peers or {}).items()}
        self._labels = LabelSet.load(protocol.labels)
        self._paired = bool(protocol.metrics) or "real_infrared" in protocol.pictures
        self._labelled = protocol.masks or protocol.segformer is not None
        self._evaluation = self._of_split("val", protocol.images)

    def _of_split(self, split: str, images: int) -> Evaluation:
        subject = self._subject
        scenes = ValidationSet(
            self._root,
            self._cache,
            subject.model.config,
            self._labels,
            layouts=(self._layout,),
            split=split,
        )
        limits = [limit for limit in (subject.limit, images) if limit]
        return replace(subject, scenes=scenes, limit=min(limits, default=0))

    def findings(self) -> Findings:
        """Measure everything; raises `DatasetError` for what a dataset or a peer lacks."""
        scores, masks, curves = Scores(), dict[str, Confusion](), Curves()
        told = translation(self._subject.engine.labels, self._labels)
        directly = self._protocol.metrics or self._protocol.masks
        for point in self._protocol.points() if directly else ():
            counted = Confusion(len(self._labels) + 1)  # the last: a class that the set lacks
            for scene, pictures, mask in self._scenes(self._evaluation, point):
                for name, picture in pictures.items() if self._protocol.metrics else ():
                    scores.add([_row(point, name)], **self._score(scene, picture))
                if self._protocol.masks and scene.labels is not None:
                    counted.add(told[mask], scene.labels)
            if self._protocol.masks:
                masks[_row(point, "mask of the engine")] = counted
            self._draw(curves, point, scores, counted)
        tables = []
        if self._protocol.metrics:
            tables.append(self._fusion_table(scores))
        masks |= dict(self._segformer())
        if masks:
            tables.append(self._segmentation_table(masks))
        return Findings(tuple(tables), curves)

    def _scenes(
        self, evaluation: Evaluation, point: Point, only: str = ""
    ) -> Iterator[tuple[Scene, dict[str, U8], U8]]:
        """Read every scene and make its pictures, or `only` one of them, and the engine's mask."""
        evaluation = replace(evaluation, tau=point.tau, steps=point.steps or evaluation.steps)
        condition = "none" if point.effect else self._protocol.condition
        kinds = [kind for kind in self._protocol.pictures if not only or TITLES[kind] == only]
        peers = [name for name in self._peers if not only or name == only]
        fuses = not _BY_ENGINE.isdisjoint(kinds) or (self._protocol.masks and not only)
        seen = False
        for scene in evaluation.under(condition, self._fits, _row(point, only or "scenes")):
            seen, image = True, scene.degraded
            if point.effect:
                seed = zlib.crc32(f"{scene.source}/{scene.name}/{point.effect}".encode())
                step = Degradation(point.effect, point.strength)
                recipe = Recipe(point.effect, (step,))
                image = degrade(scene.visible, np.random.default_rng(seed), recipe)
            made = {"degraded": image, "visible": scene.visible}
            if scene.infrared is not None:
                made["real_infrared"] = to_rgb8(scene.infrared)
            mask = np.zeros(image.shape[:2], np.uint8)
            if fuses:
                outcome = (
                    evaluation.fuse(image)
                    if point.variant == "full"
                    else evaluation.inference().fuse(image, point.variant)
                )
                mask, made["infrared"] = outcome.mask, to_rgb8(outcome.infrared)
                made |= {"enhanced": outcome.enhanced, "magimg": outcome.magimg}
            pictures = {TITLES[kind]: made[kind] for kind in kinds}
            pictures |= {name: self._of_peer(name, scene, evaluation.scenes) for name in peers}
            yield scene, pictures, mask
        if not seen:
            needed = {"infrared": self._paired, "labels": self._labelled}
            what = " and ".join(name for name, wanted in needed.items() if wanted)
            raise NotThereError(f"no image of {self._layout} has {what}")

    def _fits(self, frame: Frame) -> bool:
        paired = frame.infrared is not None or not self._paired
        return paired and (frame.labels is not None or not self._labelled)

    def _of_peer(self, name: str, scene: Scene, scenes: ValidationSet) -> U8:
        """Read a peer's picture of a scene, and cut it to the scene's crop."""
        folder, files = self._peers[name]
        if scene.name not in files:
            raise DatasetError(f"{folder / scene.name} is missing; {name} needs one of every scene")
        path = files[scene.name]
        picture, recorded = read_image(path), scenes.frames[scene.source, scene.name].visible
        height, width = read_image(recorded).shape[:2]
        if picture.shape[:2] != (height, width):
            raise DatasetError(
                f"{path} is {picture.shape[1]}x{picture.shape[0]} but {recorded} is "
                f"{width}x{height}; a peer's picture has the size of what it was made of"
            )
        high, wide = scene.visible.shape[:2]
        size = training_size(width, height, CacheSettings(wide, high))
        image = cv2.resize(to_rgb8(picture), size, interpolation=cv2.INTER_AREA)
        x, y = (size[0] - wide) // 2, (size[1] - high) // 2
        return np.ascontiguousarray(image[y : y + high, x : x + wide], np.uint8)

    def _score(self, scene: Scene, picture: U8) -> dict[str, float]:
        if scene.infrared is None:
            raise DatasetError(f"{scene.source}/{scene.name} has no infrared picture")
        of = grey(scene.visible), scene.infrared, grey(picture)
        return fusion_scores(*of, self._protocol.metrics)

    def _draw(self, curves: Curves, point: Point, scores: Scores, masks: Confusion) -> None:
        """Add a point's scores to the curves, where its setting is a number."""
        if point.value is None:
            return
        panels = curves.setdefault(point.curve, {})
        for metric in self._protocol.metrics:
            for kind in self._protocol.pictures:
                value = scores.mean(_row(point, TITLES[kind]), metric)
                lines = panels.setdefault(FUSION_METRICS[metric].column.name, {})
                lines.setdefault(TITLES[kind], []).append((point.value, value))
        if self._protocol.masks:
            line = panels.setdefault("mIoU (%)", {}).setdefault("mask of the engine", [])
            line.append((point.value, 100.0 * mean(masks.iou())))

    def _segformer(self) -> Iterator[tuple[str, Confusion]]:
        """Train SegFormer on each kind of picture, and count what it says on the others."""
        recipe = self._protocol.segformer
        if recipe is None:
            return
        train = self._of_split("train", recipe.images)
        names = [*(TITLES[kind] for kind in self._protocol.pictures), *self._peers]
        for point in self._protocol.points():
            for name in names:
                segment = train_segformer(
                    (
                        (pictures[name], scene.labels)
                        for scene, pictures, _ in self._scenes(train, point, name)
                        if scene.labels is not None
                    ),
                    len(self._labels),
                    recipe,
                    device=self._subject.inference().device,
                    checkpoint=self._checkpoint,
                    progress=self._subject.progress,
                )
                counted = Confusion(len(self._labels))
                for scene, pictures, _ in self._scenes(self._evaluation, point, name):
                    if scene.labels is not None:
                        counted.add(segment(pictures[name]), scene.labels)
                title = f"SegFormer on {_row(point, name)}"
                self._subject.progress(f"{title}: mIoU {100.0 * mean(counted.iou()):.1f} %")
                yield title, counted

    def _fusion_table(self, scores: Scores) -> Table:
        metrics = self._protocol.metrics
        rows: list[Row] = [
            (row, len(scores.values(row, metrics[0])), *(scores.mean(row, m) for m in metrics))
            for row in scores.rows()
        ]
        if self._protocol.fusion_quoted is not None:
            rows += self._protocol.fusion_quoted.cells(("images", *metrics))
        columns = (Column("picture"), Column("images"), *fusion_columns(metrics))
        note = "Scored against the recorded visible and infrared pictures."
        return Table(self._protocol.title, columns, tuple(rows), self._note(note), self._source())

    def _segmentation_table(self, counted: Mapping[str, Confusion]) -> Table:
        rows: list[Row] = []
        classes = [*self._labels.names(), "mIoU"]
        for name, confusion in counted.items():
            iou = 100.0 * confusion.iou()[: len(self._labels)]
            rows.append((name, *(float(each) for each in iou), mean(iou)))
        if self._protocol.segmentation_quoted is not None:
            rows += self._protocol.segmentation_quoted.cells(classes)
        held = [k for k in range(1, 1 + len(classes)) if not all(_is_nan(row[k]) for row in rows)]
        rows = [(row[0], *(row[k] for k in held)) for row in rows]
        columns = (Column("IoU (%) of"), *(Column(classes[k - 1], 1) for k in held))
        note = "mIoU: mean over the classes that the labels hold."
        recipe = self._protocol.segformer
        if recipe is not None:
            begun = "a checkpoint" if self._checkpoint else "random weights"
            limit = self._of_split("train", recipe.images).limit
            note += (
                f" SegFormer: {recipe.steps} steps of {recipe.batch} from {begun}, on "
                f"{f'up to {limit}' if limit else 'all'} training images at "
                f"{recipe.size[0]}x{recipe.size[1]}."
            )
        if any(frame.pseudo for frame in self._evaluation.scenes.frames.values()):
            note += " The labels were made by networks, not by people."
        title = self._protocol.title + (", masks" if self._protocol.metrics else "")
        return Table(title, columns, tuple(rows), self._note(note), self._source())

    def _note(self, more: str) -> str:
        wanted = self._protocol.data[0]
        other = "" if self._layout == wanted else f", in the place of {wanted}"
        measured = f"Measured on {self._layout}{other}."
        swept = self._protocol.sweep is not None and self._protocol.sweep.effects
        condition = "" if swept else f" Input: {self._protocol.condition}."
        return f"{measured}{condition} {more} {self._protocol.note}".strip()

    def _source(self) -> str:
        subject = self._evaluation
        ablated = self._protocol.sweep is not None and self._protocol.sweep.ablations
        return (
            f"{subject.by_engine} Models I-IV: {subject.by_model}" if ablated else subject.by_engine
        )


def _is_nan(cell: Cell) -> bool:
    return isinstance(cell, float) and math.isnan(cell)


def _row(point: Point, name: str) -> str:
    return ", ".join(filter(None, (point.name, name)))
