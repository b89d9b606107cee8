"""Packs: what training takes of its data at one size, as JPEG in one file a source, to carry along.

A pack `<source>.pack` is a ZIP file with `pack.json`, which holds what the cache knows of each
item, and for item k `k.jpg` (visible), and where it has them `k.infrared.jpg` on the common scale
and `k.png`, canonical label ids with those of boxes filled in.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from magicfuse_ros.training.datasets.cache import (
    CachedItem,
    CachedSource,
    CacheSettings,
    open_cache,
    open_written,
    pixels_of,
    write_cache,
)
from magicfuse_ros.training.datasets.frames import U8, DatasetError
from magicfuse_ros.training.datasets.layouts import find_sources

_INDEX = "pack.json"
_SUFFIX = ".pack"
# Tried one after the other; JPEG shows below the last.
_QUALITIES = (94, 90, 86, 82, 78)


def pack(sources: Iterable[CachedSource], settings: CacheSettings, folder: Path, most: int) -> int:
    """Write sources as packs of at most `most` bytes together; returns the JPEG quality taken.

    Raises
    ------
    DatasetError
        Even the lowest quality takes more; no pack is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources, size = list(sources), 0
    paths = [folder / f"{source.name.replace('/', '-')}{_SUFFIX}" for source in sources]
    for quality in _QUALITIES:
        for path, source in zip(paths, sources, strict=True):
            _write(path, source, settings, quality)
        size = sum(path.stat().st_size for path in paths)
        if size <= most:
            return quality
    for path in paths:
        path.unlink()
    raise DatasetError(
        f"the data take {size / 1e6:.1f} MB at quality {_QUALITIES[-1]}; accepted: at most "
        f"{most / 1e6:.1f} MB. Leave some out, or take a smaller size"
    )


def training_sources(
    data: Path, cache: Path, settings: CacheSettings, progress: Callable[[str], None]
) -> list[CachedSource]:
    """Open what to train on: a folder of packs, or of datasets named after their layouts.

    Raises
    ------
    DatasetError
        As `find_sources` and `open_cache`, or a pack is damaged or of another size.
    """
    packs = sorted(data.glob(f"*{_SUFFIX}"))
    if packs:
        return [_unpacked(path, cache, settings, progress) for path in packs]
    return [open_cache(source, cache, settings, progress) for source in find_sources(data, "train")]


def _write(path: Path, source: CachedSource, settings: CacheSettings, quality: int) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for k in range(len(source)):
            jpeg = (cv2.IMWRITE_JPEG_QUALITY, quality)
            bgr = cv2.cvtColor(source.visible(k), cv2.COLOR_RGB2BGR)
            planes = [(f"{k}.jpg", bgr, jpeg), (f"{k}.infrared.jpg", source.infrared(k), jpeg)]
            planes.append((f"{k}.png", source.labels(k), (cv2.IMWRITE_PNG_COMPRESSION, 9)))
            for name, plane, options in planes:
                if plane is not None:
                    file.writestr(
                        name, cv2.imencode(Path(name).suffix, plane, options)[1].tobytes()
                    )
        items = [asdict(item) for item in source.items]
        index = {"name": source.name, "settings": asdict(settings), "items": items}
        file.writestr(_INDEX, json.dumps(index))


def _unpacked(
    path: Path, cache: Path, settings: CacheSettings, progress: Callable[[str], None]
) -> CachedSource:
    facts = path.stat()
    stem = f"{path.stem}-{facts.st_size:x}{facts.st_mtime_ns:x}"
    try:
        with zipfile.ZipFile(path) as file:
            index = json.loads(file.read(_INDEX))
            if index["settings"] != asdict(settings):
                width, height = index["settings"]["width"], index["settings"]["height"]
                raise DatasetError(
                    f"{path} is packed for {width}x{height}, and this stage takes "
                    f"{settings.width}x{settings.height}; pack the data for this size of model"
                )
            if not (cache / f"{stem}.json").is_file():
                progress(f"unpacking {path.name}: {len(index['items'])} items")
                cache.mkdir(parents=True, exist_ok=True)
                write_cache(cache / f"{stem}.raw", _items(file, index["items"]))
            return open_written(index["name"], cache / f"{stem}.raw")
    except (zipfile.BadZipFile, KeyError, TypeError, json.JSONDecodeError, cv2.error) as error:
        raise DatasetError(f"{path} is damaged ({error}); pack the data again") from error


def _items(
    file: zipfile.ZipFile, entries: list[dict[str, Any]]
) -> Iterator[tuple[bytes, CachedItem]]:
    def read(name: str, flags: int) -> U8:
        content = np.frombuffer(file.read(name), np.uint8)
        return np.asarray(cv2.imdecode(content, flags), np.uint8)

    for k, item in enumerate(map(CachedItem.of, entries)):
        visible = read(f"{k}.jpg", cv2.IMREAD_COLOR_RGB)
        infrared = read(f"{k}.infrared.jpg", 0) if item.has_infrared else None
        labels = read(f"{k}.png", 0) if item.has_labels else None
        yield pixels_of(visible, infrared, labels, item.boxes), item
