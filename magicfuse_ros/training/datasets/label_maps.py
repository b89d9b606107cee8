"""From the class ids of each dataset to those of a label set, by name.

Labels are stored once as ids into `CANONICAL` and turned into a label set's ids when they are
read, so that one cache serves every label set, a user's own included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from magicfuse_ros.model.labels import UNKNOWN, LabelSet

# Canonical class -> names it may have in a label set, best first. A set that has none of them
# leaves the class unknown.
_NAMES: dict[str, tuple[str, ...]] = {
    "car": ("car",),
    "truck": ("truck", "car"),
    "bus": ("bus", "car"),
    "train": ("train",),
    "person": ("person", "pedestrian"),
    "rider": ("rider", "person"),
    # CamVid's bicyclist is the rider together with the bicycle.
    "bicyclist": ("bike", "rider", "bicycle"),
    "bicycle": ("bicycle", "bike"),
    "motorcycle": ("motorcycle", "bike"),
    "bike": ("bike", "bicycle"),
    "road": ("road",),
    "sidewalk": ("sidewalk", "pavement"),
    "building": ("building",),
    "wall": ("wall",),
    "vegetation": ("vegetation", "tree"),
    "terrain": ("terrain", "vegetation"),
    "sky": ("sky",),
    "sign": ("sign", "traffic sign"),
    "lamp": ("lamp", "traffic light", "sign"),
    "pole": ("pole",),
    "fence": ("fence",),
    "guardrail": ("guardrail", "guard rail", "fence"),
    "curve": ("curve",),
    "car stop": ("car stop",),
    "color cone": ("color cone",),
    "bump": ("bump",),
    # Everything that a set like MFNet's does not name: not the same as unknown.
    "background": ("unlabeled", "background"),
}
CANONICAL = tuple(_NAMES)

# What stands around the objects. A set that names none of these has them in its background.
_SCENERY = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "vegetation",
    "terrain",
    "sky",
    "sign",
    "lamp",
    "pole",
)


class Classes(dict[int, str]):
    """Canonical class of each id in a dataset's label images.

    Attributes
    ----------
    unlabeled
        Further ids that they may hold, of pixels without a class; 255 always is one.
    """

    def __init__(self, classes: Mapping[int, str], unlabeled: Iterable[int] = ()) -> None:
        super().__init__(classes)
        self.unlabeled = frozenset({*unlabeled, UNKNOWN})


MFNET = Classes({
    0: "background", 1: "car", 2: "person", 3: "bike", 4: "curve", 5: "car stop", 6: "guardrail",
    7: "color cone", 8: "bump",
})  # fmt: skip
FMB = Classes({
    1: "road", 2: "sidewalk", 3: "building", 4: "lamp", 5: "sign", 6: "vegetation", 7: "sky",
    8: "person", 9: "car", 10: "truck", 11: "bus", 12: "motorcycle", 13: "bicycle", 14: "pole",
}, unlabeled={0})  # fmt: skip
CAMVID = Classes({
    0: "sky", 1: "building", 2: "pole", 3: "road", 4: "sidewalk", 5: "vegetation", 6: "sign",
    7: "fence", 8: "car", 9: "person", 10: "bicyclist",
}, unlabeled={11})  # fmt: skip
CITYSCAPES = Classes({  # the labelIds files, not the 19 trainIds
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 14: "guardrail",
    17: "pole", 19: "lamp", 20: "sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person",
    25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}, unlabeled=range(34))  # fmt: skip


def to_canonical(classes: Mapping[int, str]) -> NDArray[np.uint8]:
    """Return a table (256,) uint8 from a source's ids to indices into `CANONICAL`, 255 unknown."""
    table = np.full(256, UNKNOWN, np.uint8)
    for source_id, name in classes.items():
        table[source_id] = CANONICAL.index(name)
    return table


def from_canonical(labels: LabelSet) -> NDArray[np.uint8]:
    """Return a table (256,) uint8 from indices into `CANONICAL` to a label set's ids, 255 unknown.

    A set's own class `unlabeled` means "none of these". Scenery is taught as that where the set
    names no scenery at all, as MFNet's does; else a part of it that the set lacks is unknown. What
    MFNet leaves unlabeled may be any class that MFNet does not name: it is unknown to a set that
    has one of those.
    """
    ids = {name.replace("_", " ").lower(): i for i, name in enumerate(labels.names())}
    named = {name: next((ids[n] for n in _NAMES[name] if n in ids), UNKNOWN) for name in CANONICAL}
    if all(named[name] == UNKNOWN for name in _SCENERY):
        named |= dict.fromkeys(_SCENERY, named["background"])
    taught = {named[name] for name in MFNET.values()} | {UNKNOWN}
    if named["fence"] != UNKNOWN or not set(named.values()) <= taught:  # a guardrail is no fence
        named["background"] = UNKNOWN
    table = np.full(256, UNKNOWN, np.uint8)
    table[: len(CANONICAL)] = [named[name] for name in CANONICAL]
    return table
