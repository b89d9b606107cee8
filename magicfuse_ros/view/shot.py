"""One moment of the stream as the page shows it, and what the page needs of whoever makes it."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import cv2
import numpy as np
import simplejpeg

from magicfuse_ros.runtime.contract import UInt8

PICTURES = ("input", "enhanced", "magimg", "infrared", "semantics")
"""The pictures of a shot, in the order in which the page shows them."""

LARGEST = 1280
"""Longer sides, in pixels, are scaled down to this before they are sent."""
QUALITY = 82


@dataclass
class Shot:
    """The pictures of one frame. They are made and encoded when the first viewer wants them."""

    number: int  # counts the shots of one run, from 1
    taken_s: float  # when the camera's frame came, by `time.monotonic`
    # Some of `PICTURES`; each returns (H, W, 3) RGB or (H, W) grey, or raises ValueError.
    pictures: Mapping[str, Callable[[], UInt8]]
    mask: Callable[[], UInt8] | None = None  # returns (H, W) class ids, where they are known
    _jpegs: dict[str, bytes] = field(default_factory=dict)
    _faults: dict[str, str] = field(default_factory=dict)
    _present: list[int] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def pack(self, wanted: Collection[str]) -> bytes:
        """Return one message: the length of a header (uint32, little endian), header, JPEGs.

        The header is JSON: `number`, `age_ms` of the frame now, `pictures` as [name, length] in the
        order of their bytes, `present` (ids of the classes in the mask) and `faults` (pictures that
        could not be made, with the reason).
        """
        with self._lock:
            for name in wanted:
                if name in self.pictures and name not in self._jpegs.keys() | self._faults.keys():
                    try:
                        self._jpegs[name] = _jpeg(self.pictures[name]())
                    except ValueError as error:
                        self._faults[name] = str(error)
            if self._present is None:
                counts = np.bincount(self.mask().ravel()) if self.mask is not None else np.zeros(0)
                self._present = np.flatnonzero(counts).tolist()
            jpegs = {name: self._jpegs[name] for name in PICTURES if name in self._jpegs}
        chosen = {name: jpeg for name, jpeg in jpegs.items() if name in wanted}
        header = {
            "number": self.number,
            "age_ms": round((time.monotonic() - self.taken_s) * 1e3),
            "pictures": [[name, len(jpeg)] for name, jpeg in chosen.items()],
            "present": self._present,
            "faults": self._faults,
        }
        text = json.dumps(header).encode()
        return b"".join([struct.pack("<I", len(text)), text, *chosen.values()])


class Show(Protocol):
    """Makes shots, and obeys the page; every method may be called from any thread."""

    on_shot: Callable[[Shot], None]  # called with every shot, in any thread
    failure: str  # why there will be no more shots, in one sentence; empty while there may be

    def state(self) -> dict[str, Any]:
        """Return what the page shows beside the pictures, as JSON can hold it."""
        ...

    def want(self, pictures: frozenset[str]) -> None:
        """Make these pictures from now on; with none, nothing is made at all."""
        ...

    def tune(self, tau: float | None, temporal: float) -> None:
        """Set both parameters; raises ValueError. None is the model's own τ."""
        ...

    def play(self, order: str, value: float) -> None:
        """Obey `pause` (0 or 1), `step` or `seek` (seconds); ValueError where there is no file."""
        ...

    def close(self) -> None:
        """End everything."""
        ...


class Rate:
    """Counts events a second over the last two seconds; one thread ticks, any thread reads."""

    SPAN_S = 2.0

    def __init__(self) -> None:
        self._ticks: deque[float] = deque(maxlen=512)

    def tick(self) -> None:
        """Count one event now."""
        self._ticks.append(time.monotonic())

    def per_second(self) -> float:
        """Return events per second; 0 after two seconds without any."""
        since = time.monotonic() - self.SPAN_S
        ticks = [tick for tick in tuple(self._ticks) if tick > since]
        return (len(ticks) - 1) / (ticks[-1] - ticks[0]) if len(ticks) > 1 else 0.0


def _jpeg(picture: UInt8) -> bytes:
    longest = max(picture.shape[:2])
    if longest > LARGEST:
        height, width = (max(1, side * LARGEST // longest) for side in picture.shape[:2])
        resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        picture = np.asarray(resized, np.uint8)
    grey = picture.ndim == 2
    pixels = np.ascontiguousarray(picture[..., None] if grey else picture)
    jpeg: bytes = simplejpeg.encode_jpeg(
        pixels, QUALITY, "GRAY" if grey else "RGB", "Gray" if grey else "420", fastdct=True
    )
    return jpeg
