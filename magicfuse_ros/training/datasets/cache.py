"""A cache of decoded images: every source becomes one memory-mapped file at training size.

`<source>-<key>.raw` holds the pixels (uint8), and `<source>-<key>.json` beside it says where in it
each item's planes are. The key is a digest of the list of files with their sizes and times, the
settings and the version of this format, so a changed dataset makes a new cache, and an interrupted
build leaves none. An item is (h, w, 4), the visible image and the infrared on the common scale, and
then (h, w, 2), labels as canonical ids (see `label_maps`) and the thermal weight: 255 in boxes of
people, 128 in other boxes. What an item has not is 0 in the infrared, and 255 in the labels.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magicfuse_ros.model.labels import UNKNOWN
from magicfuse_ros.training.datasets.frames import U8, Box, DatasetError, Frame, Item, Source
from magicfuse_ros.training.datasets.label_maps import CANONICAL, to_canonical
from magicfuse_ros.training.heat import hot_boxes
from magicfuse_ros.training.infrared import InfraredScale, common_infrared_scale
from magicfuse_ros.training.weak_masks import weak_mask

# Raise when the decoded content changes for the same files and settings.
_VERSION = 6
# Items begin at multiples of this many bytes: pixels are read as 32 bits.
_ALIGNED = 4
_BOX_IDS = {kind: CANONICAL.index(kind) for kind in ("person", "bike", "car")}


@dataclass(frozen=True)
class CacheSettings:
    """How images are stored."""

    # The smallest size: images are scaled, keeping their aspect, until one side is equal.
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
    has_infrared: bool
    has_labels: bool
    night: bool
    clean: bool
    annotated: bool
    pseudo: bool
    boxes: tuple[Box, ...]
    offset: int = 0

    @classmethod
    def of(cls, values: dict[str, Any]) -> CachedItem:
        """Make one of what `asdict` gave, as an index in JSON holds it."""
        return cls(**{**values, "boxes": tuple(Box(**box) for box in values["boxes"])})


class CachedSource:
    """A source's items, read from the memory-mapped cache; use `open_cache` to get one."""

    def __init__(self, name: str, items: list[CachedItem], array: NDArray[np.uint8]) -> None:
        self.name = name
        self.items = items
        self._array = array

    def __len__(self) -> int:
        return len(self.items)

    def visible(self, index: int) -> U8:
        """Return the visible image, (H, W, 3) uint8 RGB."""
        return np.ascontiguousarray(self._colours(index)[..., :3])

    def infrared(self, index: int) -> U8 | None:
        """Return the infrared image, (H, W) uint8 on the common scale, or None."""
        if not self.items[index].has_infrared:
            return None
        return np.ascontiguousarray(self._colours(index)[..., 3])

    def labels(self, index: int) -> U8 | None:
        """Return the labels, (H, W) uint8 canonical ids with 255 for unknown, or None."""
        item = self.items[index]
        if not item.has_labels:
            return None
        start = item.offset + 4 * item.height * item.width
        known = self._array[start : start + 2 * item.height * item.width]
        return np.ascontiguousarray(known.reshape(item.height, item.width, 2)[..., 0])

    def bytes_on(self, device: torch.device) -> Tensor:
        """Return the whole cache as (bytes,) uint8; on the CPU it is the mapped file itself."""
        with warnings.catch_warnings():  # that it must not be written to, which nobody does
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(self._array).to(device)

    def _colours(self, index: int) -> U8:
        item = self.items[index]
        part = self._array[item.offset : item.offset + 4 * item.height * item.width]
        return part.reshape(item.height, item.width, 4)


def open_cache(
    source: Source,
    cache_dir: Path,
    settings: CacheSettings | None = None,
    progress: Callable[[str], None] | None = None,
) -> CachedSource:
    """Open the cache of a source, building it first where there is none.

    It takes about 0.5 MB an item at 320x240, the default, which is the resolution of `tiny`.
    `progress` receives a line when a build starts and every 100 items.

    Raises
    ------
    DatasetError
        At the first file that is missing, unreadable or misaligned.
    """
    settings = settings or CacheSettings()
    path = cache_dir / f"{source.name.replace('/', '-')}-{_key(source, settings)}.raw"
    if not path.with_suffix(".json").is_file() or not path.is_file():
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_cache(path, _decoded(source, settings, progress or (lambda _line: None)))
    return open_written(source.name, path)


def open_written(name: str, path: Path) -> CachedSource:
    """Open what `write_cache` wrote; raises `DatasetError` where it was cut short."""
    index = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    items = [CachedItem.of(entry) for entry in index["items"]]
    array = np.memmap(path, np.uint8, "r")
    if array.size != index["bytes"]:
        raise DatasetError(f"{path} has {array.size} bytes, {index['bytes']} expected; delete it")
    return CachedSource(name, items, array)


def write_cache(path: Path, items: Iterable[tuple[bytes, CachedItem]]) -> None:
    """Write a cache of items, each as `pixels_of` makes it; it gives them their offsets."""
    entries, offset = [], 0
    # A folder of this process's own: another may be writing the same cache.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as new:
        raw, index = Path(new) / "raw", Path(new) / "json"
        with raw.open("wb") as file:
            for pixels, item in items:
                entries.append(asdict(replace(item, offset=offset)))
                offset += file.write(pixels + bytes(-len(pixels) % _ALIGNED))
        index.write_text(json.dumps({"bytes": offset, "items": entries}), encoding="utf-8")
        raw.replace(path)
        index.replace(path.with_suffix(".json"))


def pixels_of(visible: U8, infrared: U8 | None, ids: U8 | None, boxes: Sequence[Box]) -> bytes:
    """Lay out an item's pixels: (H, W, 3) RGB, (H, W) infrared and canonical ids, and boxes."""
    blank = np.zeros(visible.shape[:2], np.uint8)
    colours = np.dstack((visible, blank if infrared is None else infrared))
    known = np.dstack(
        (np.full_like(blank, UNKNOWN) if ids is None else ids, _thermal(blank, boxes))
    )
    return colours.tobytes() + known.tobytes()


def thermal_weight(box: Box) -> int:
    """Return what a box's pixels have as their thermal weight, of 255."""
    return 255 if box.kind == "person" else 128


def training_size(width: int, height: int, settings: CacheSettings) -> tuple[int, int]:
    """Return the (width, height) that an image has in the cache, in pixels."""
    scale = max(settings.width / width, settings.height / height)
    return max(settings.width, round(width * scale)), max(settings.height, round(height * scale))


def _decoded(
    source: Source, settings: CacheSettings, progress: Callable[[str], None]
) -> Iterator[tuple[bytes, CachedItem]]:
    total = len(source.frames)
    progress(f"caching {source.name}: {total} items")
    lookup, scales = to_canonical(source.classes), _infrared_scales(source)
    for number, item in enumerate(source.items(), 1):
        yield _store(item, settings, lookup, scales.get(item.frame.group))
        if number % 100 == 0:
            progress(f"caching {source.name}: {number} of {total}")


def _store(
    item: Item, settings: CacheSettings, lookup: NDArray[np.uint8], scale: InfraredScale | None
) -> tuple[bytes, CachedItem]:
    frame = item.frame
    height, width = item.visible.shape[:2]
    size = training_size(width, height, settings)
    smooth = cv2.INTER_AREA if size[0] < width else cv2.INTER_CUBIC

    def resized(image: U8, interpolation: int = smooth) -> U8:
        return np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)

    infrared = None
    if item.infrared is not None:
        infrared = resized(item.infrared)
        infrared = (scale or common_infrared_scale([infrared])).apply(infrared)
    labels = None if item.labels is None else lookup[item.labels]
    if frame.boxes is not None and (labels is None or frame.pseudo):
        # At full size the object has more pixels to be told by.
        mask = weak_mask(item.visible, item.infrared, frame.boxes, _BOX_IDS)
        # What networks said stays, and boxes tell where they said nothing.
        labels = mask if labels is None else np.where(labels == UNKNOWN, mask, labels)
    boxes = frame.boxes or ()
    if frame.boxes is None and infrared is not None:
        boxes = hot_boxes(infrared)
    ids = None if labels is None else resized(labels, cv2.INTER_NEAREST)
    stored = CachedItem(
        name=frame.name,
        width=size[0],
        height=size[1],
        has_infrared=infrared is not None,
        has_labels=labels is not None,
        night=item.night,
        clean=frame.clean,
        annotated=frame.boxes is not None,
        pseudo=frame.pseudo,
        boxes=boxes,
    )
    return pixels_of(resized(item.visible), infrared, ids, boxes), stored


def _thermal(weight: U8, boxes: Sequence[Box]) -> U8:
    for box in sorted(boxes, key=lambda box: box.kind == "person"):
        x0, y0, x1, y1 = box.pixels(*weight.shape)
        weight[y0:y1, x0:x1] = thermal_weight(box)
    return weight


def _infrared_scales(source: Source) -> dict[str, InfraredScale]:
    """Fit one scale to some of the frames of each group, which is a video."""
    groups: dict[str, list[Frame]] = {}
    for frame in source.frames:
        if frame.group and frame.infrared is not None:
            groups.setdefault(frame.group, []).append(frame)
    scales = {}
    for group, frames in groups.items():
        some = Source(group, tuple(frames[:: max(1, len(frames) // 8)]))
        images = [item.infrared for item in some.items() if item.infrared is not None]
        scales[group] = common_infrared_scale(images)
    return scales


def _key(source: Source, settings: CacheSettings) -> str:
    facts = [_VERSION, asdict(settings), sorted(source.classes.items())]
    for frame in source.frames:
        for path in frame.paths():
            if not path.is_file():
                raise DatasetError(f"{path} is missing")
        facts.append([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in frame.paths()])
        boxes = None if frame.boxes is None else [asdict(box) for box in frame.boxes]
        facts.append([frame.name, frame.video_frame, frame.group, frame.clean, frame.pseudo, boxes])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
