"""`semantic.id_map`: publishes the mask in other class ids, such as Autoware's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from magicfuse_ros.model.labels import UNKNOWN
from magicfuse_ros.ros.parameter_table import ParameterError

UNKNOWN_NAME = "unknown"
REST_NAME = "*"


@dataclass(frozen=True)
class IdMap:
    """Maps class names to published ids.

    Attributes
    ----------
    entries
        (name, id) pairs. The name `unknown` stands for pixels without a class (255), and `*` for
        every class that is not named. A class that no entry covers becomes 255, so that ids of two
        label sets never mix. If there are no entries, all ids stay as they are.
    """

    entries: tuple[tuple[str, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> IdMap:
        """Read `'person:6, car:7, *:0'`.

        It raises `ParameterError` if an entry is not `name:id` with an id from 0 to 255, or a name
        comes twice.
        """
        entries: dict[str, int] = {}
        for entry in filter(None, (part.strip() for part in text.split(","))):
            name, _, number = (part.strip() for part in entry.rpartition(":"))
            if not name or not (number.isascii() and number.isdigit() and int(number) <= UNKNOWN):
                raise ParameterError(
                    f"semantic.id_map: entry {entry!r}; accepted: name:id with an id from 0 to "
                    "255, such as 'person:6, car:7, *:0'"
                )
            if name in entries:
                raise ParameterError(
                    f"semantic.id_map: class {name!r} is named twice; accepted: one entry a class"
                )
            entries[name] = int(number)
        return cls(tuple(entries.items()))

    def table(self, names: Sequence[str]) -> NDArray[np.uint8]:
        """Build the lookup table for a mask: (256,) uint8, the published id of each id in the mask.

        `names` are the label set's class names; a name's position is its id. An entry that names
        another class raises `ParameterError`.
        """
        if not self.entries:
            return np.arange(256, dtype=np.uint8)
        ids = dict(self.entries)
        rest = ids.pop(REST_NAME, UNKNOWN)
        table = np.full(256, rest, dtype=np.uint8)
        if UNKNOWN_NAME in ids and UNKNOWN_NAME not in names:
            table[UNKNOWN] = ids.pop(UNKNOWN_NAME)
        for name, published in ids.items():
            if name not in names:
                raise ParameterError(
                    f"semantic.id_map: class {name!r} is not in the label set; accepted: "
                    f"{', '.join(names)}, {UNKNOWN_NAME}, {REST_NAME}"
                )
            table[names.index(name)] = published
        return table


def remap(
    mask: NDArray[np.uint8],
    confidence: NDArray[np.uint8],
    table: NDArray[np.uint8],
    min_confidence: float,
) -> NDArray[np.uint8]:
    """Apply `semantic.min_confidence`, then an `IdMap` table.

    Mask and confidence are (H, W) uint8: class ids, and 0 to 255 for a confidence of 0 to 1. Pixels
    with a confidence below `min_confidence` (0 to 1) become unknown before they are mapped. The
    result is (H, W) uint8; `mask` is left as it was.
    """
    if min_confidence > 0.0:
        mask = np.where(confidence < min_confidence * 255.0, np.uint8(UNKNOWN), mask)
    return np.asarray(cv2.LUT(mask, table), dtype=np.uint8)
