"""A cache of decoded images: every source becomes one memory-mapped file at training size.

`<source>-<key>.raw` holds the pixels (uint8), and `<source>-<key>.json` beside it says where in it
each item's planes are. The key is a digest of the list of files with their sizes and times, the
settings and the version of this format, so a changed dataset makes a new cache, and an interrupted
build leaves none. The planes of an item are the visible image (h, w, 3) RGB and then, where the
item has them, infrared (h, w) on the common scale and labels (h, w) as canonical ids (see
`label_maps`).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from magicfuse_ros.model.labels import UNKNOWN
from magicfuse_ros.training.datasets.frames import U8, Box, DatasetError, Frame, Item, Source
from magicfuse_ros.training.datasets.label_maps import CANONICAL, to_canonical
from magicfuse_ros.training.heat import hot_boxes
from magicfuse_ros.training.infrared import InfraredScale, common_infrared_scale
from magicfuse_ros.training.weak_masks import weak_mask

# Raise when the decoded content changes for the same files and settings.
_VERSION = 5
_BOX_IDS = {kind: CANONICAL.index(kind) for kind in ("person", "bike", "car")}


@dataclass(frozen=True)
class CacheSettings:
    """How images are stored.

    Attributes
    ----------
    width, height
        The smallest size: images are scaled, keeping their aspect, until one side is equal.
    """

    width: int = 320
    height: int = 240

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 16:
            raise ValueError(
                f"cache size {self.width}x{self.height} is too small; use at least 16x16"
            )


@dataclass(frozen=True)
class CachedItem:
    """Where an item lies in the cache, and what is known of it.

    Boxes are the annotated ones where `annotated`, or those of kind `heat` that `hot_boxes` finds
    where there is infrared and no annotation.
    """

    name: str
    height: int
    width: int
    offset: int
    has_infrared: bool
    has_labels: bool
    night: bool
    clean: bool
    annotated: bool
    pseudo: bool
    boxes: tuple[Box, ...]


class CachedSource:
    """A source's items, read from the memory-mapped cache; use `open_cache` to get one.

    Planes are views into the map: copy them before changing anything.
    """

    def __init__(self, name: str, items: list[CachedItem], array: NDArray[np.uint8]) -> None:
        self.name = name
        self.items = items
        self._array = array

    def __len__(self) -> int:
        return len(self.items)

    def visible(self, index: int) -> U8:
        """Return the visible image, (H, W, 3) uint8 RGB."""
        item = self.items[index]
        return self._plane(item, 0, 3).reshape(item.height, item.width, 3)

    def infrared(self, index: int) -> U8 | None:
        """Return the infrared image, (H, W) uint8 on the common scale, or None."""
        item = self.items[index]
        return (
            self._plane(item, 3, 1).reshape(item.height, item.width) if item.has_infrared else None
        )

    def labels(self, index: int) -> U8 | None:
        """Return the labels, (H, W) uint8 canonical ids with 255 for unknown, or None."""
        item = self.items[index]
        if not item.has_labels:
            return None
        return self._plane(item, 4 if item.has_infrared else 3, 1).reshape(item.height, item.width)

    def _plane(self, item: CachedItem, before: int, planes: int) -> U8:
        size = item.height * item.width
        start = item.offset + before * size
        return self._array[start : start + planes * size]


def open_cache(
    source: Source,
    cache_dir: Path,
    settings: CacheSettings | None = None,
    progress: Callable[[str], None] | None = None,
) -> CachedSource:
    """Open the cache of a source, building it first where there is none.

    Parameters
    ----------
    source
        What to decode.
    cache_dir
        Folder of the caches, made if missing. About 0.3 MB an item at 320x240.
    settings
        How to store; the default is the model resolution of `tiny`.
    progress
        Receives a line when a build starts and every 100 items.

    Raises
    ------
    DatasetError
        At the first file that is missing, unreadable or misaligned.
    """
    settings = settings or CacheSettings()
    stem = f"{source.name.replace('/', '-')}-{_key(source, settings)}"
    array_path, index_path = cache_dir / f"{stem}.raw", cache_dir / f"{stem}.json"
    if not index_path.is_file() or not array_path.is_file():
        cache_dir.mkdir(parents=True, exist_ok=True)
        _build(source, settings, array_path, index_path, progress or (lambda _line: None))
    index = json.loads(index_path.read_text(encoding="utf-8"))
    items = []
    for entry in index["items"]:
        boxes = tuple(Box(**box) for box in entry["boxes"])
        items.append(CachedItem(**{**entry, "boxes": boxes}))
    array = np.memmap(array_path, np.uint8, "r")
    if array.size != index["bytes"]:
        raise DatasetError(
            f"{array_path} has {array.size} bytes, {index['bytes']} expected; delete it"
        )
    return CachedSource(source.name, items, array)


def training_size(width: int, height: int, settings: CacheSettings) -> tuple[int, int]:
    """Return the (width, height) that an image has in the cache, in pixels."""
    scale = max(settings.width / width, settings.height / height)
    return max(settings.width, round(width * scale)), max(settings.height, round(height * scale))


def _build(
    source: Source,
    settings: CacheSettings,
    array_path: Path,
    index_path: Path,
    progress: Callable[[str], None],
) -> None:
    total = len(source.frames)
    progress(f"caching {source.name}: {total} items")
    entries: list[dict[str, object]] = []
    offset = 0
    lookup = to_canonical(source.classes)
    scales = _infrared_scales(source)
    raw_fd, raw_name = tempfile.mkstemp(dir=array_path.parent, suffix=".part")
    try:
        with os.fdopen(raw_fd, "wb") as raw:
            for number, item in enumerate(source.items(), 1):
                planes, entry = _store(item, settings, lookup, scales.get(item.frame.group))
                raw.writelines(plane.tobytes() for plane in planes)
                entries.append({**entry, "offset": offset})
                offset += sum(plane.size for plane in planes)
                if number % 100 == 0:
                    progress(f"caching {source.name}: {number} of {total}")
        Path(raw_name).replace(array_path)
    finally:
        Path(raw_name).unlink(missing_ok=True)
    part = index_path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({"bytes": offset, "items": entries}), encoding="utf-8")
    part.replace(index_path)


def _store(
    item: Item, settings: CacheSettings, lookup: NDArray[np.uint8], scale: InfraredScale | None
) -> tuple[list[U8], dict[str, object]]:
    frame = item.frame
    height, width = item.visible.shape[:2]
    size = training_size(width, height, settings)
    shrink = size[0] < width
    smooth = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
    visible = np.asarray(cv2.resize(item.visible, size, interpolation=smooth), np.uint8)
    planes = [visible]
    infrared = None
    if item.infrared is not None:
        infrared = np.asarray(cv2.resize(item.infrared, size, interpolation=smooth), np.uint8)
        scale = scale or common_infrared_scale([infrared])
        infrared = scale.apply(infrared)
        planes.append(infrared)
    labels = None if item.labels is None else lookup[item.labels]
    if frame.boxes is not None and (labels is None or frame.pseudo):
        # At full size the object has more pixels to be told by.
        mask = weak_mask(item.visible, item.infrared, frame.boxes, _BOX_IDS)
        # What networks said stays, and boxes tell where they said nothing.
        labels = mask if labels is None else np.where(labels == UNKNOWN, mask, labels)
    if labels is not None:
        planes.append(
            np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.uint8)
        )
    boxes = frame.boxes
    if boxes is None and infrared is not None:
        boxes = hot_boxes(infrared)
    entry: dict[str, object] = {
        "name": frame.name,
        "width": size[0],
        "height": size[1],
        "has_infrared": infrared is not None,
        "has_labels": len(planes) > 1 + (infrared is not None),
        "night": item.night,
        "clean": frame.clean,
        "annotated": frame.boxes is not None,
        "pseudo": frame.pseudo,
        "boxes": [asdict(box) for box in boxes or ()],
    }
    return planes, entry


def _infrared_scales(source: Source) -> dict[str, InfraredScale]:
    """Fit one scale to some of the frames of each group, which is a video."""
    groups: dict[str, list[Frame]] = {}
    for frame in source.frames:
        if frame.group and frame.infrared is not None:
            groups.setdefault(frame.group, []).append(frame)
    scales = {}
    for group, frames in groups.items():
        some = tuple(frames[:: max(1, len(frames) // 8)])
        scales[group] = common_infrared_scale(list(_infrared_of(Source(group, some))))
    return scales


def _infrared_of(source: Source) -> Iterator[U8]:
    for item in source.items():
        if item.infrared is not None:
            yield item.infrared


def _key(source: Source, settings: CacheSettings) -> str:
    digest = hashlib.sha256()
    facts = [_VERSION, asdict(settings), sorted(source.classes.items())]
    for frame in source.frames:
        for path in frame.paths():
            if not path.is_file():
                raise DatasetError(f"{path} is missing")
        facts.append([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in frame.paths()])
        boxes = None if frame.boxes is None else [asdict(box) for box in frame.boxes]
        facts.append([frame.name, frame.video_frame, frame.group, frame.clean, frame.pseudo, boxes])
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()[:16]
