"""Label sets: what the segmentation head S can say, and which classes radiate heat.

A label set is a YAML file; the built-in ones are in `label_sets/` and are examples for a user's
own::

    name: drive
    labels:            # in the order of their ids, from 0
      - {name: unlabeled, color: [0, 0, 0], thermal: false}
      - {name: person, color: [64, 64, 0], thermal: true}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from magicfuse_ros.messages import one_line
from magicfuse_ros.yaml_limits import YamlLimitError, load_yaml

UNKNOWN = 255
"""The id of a pixel of no known class, in masks and in training labels (which ignore it)."""

OBJECTS = ("person", "car", "bike", "bicycle")
"""Names of the classes of people and vehicles, which may be warm and which boxes annotate."""

_BUILT_IN = Path(__file__).parent / "label_sets"


class LabelSetError(ValueError):
    """A label set that is unknown or malformed; the message says what is accepted."""


@dataclass(frozen=True)
class Label:
    """One class: its value in masks, its name, and its (R, G, B), each 0 to 255.

    A thermal one is a source of heat (Eq. 11).
    """

    id: int
    name: str
    color: tuple[int, int, int]
    thermal: bool


@dataclass(frozen=True)
class LabelSet:
    """The classes of a segmentation head; `labels[i].id == i`."""

    name: str
    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.labels) < UNKNOWN:
            raise LabelSetError(
                f"label set {self.name!r} has {len(self.labels)} labels; "
                f"accepted: 1 to {UNKNOWN - 1}"
            )
        names = self.names()
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise LabelSetError(
                f"label set {self.name!r} repeats the names {repeated}; "
                "give each label its own name"
            )
        for index, label in enumerate(self.labels):
            if label.id != index:
                raise LabelSetError(
                    f"label {label.name!r} of {self.name!r} has id {label.id}; "
                    f"its place gives {index}"
                )
            if len(label.color) != 3 or not all(0 <= part <= 255 for part in label.color):
                raise LabelSetError(
                    f"label {label.name!r} of {self.name!r} has color {list(label.color)}; "
                    "accepted: [R, G, B], each 0 to 255"
                )

    def __len__(self) -> int:
        return len(self.labels)

    def names(self) -> list[str]:
        """Return the class names in the order of their ids."""
        return [label.name for label in self.labels]

    def id_of(self, name: str) -> int:
        """Find the id of the class `name`; raises `LabelSetError` naming the accepted ones."""
        for label in self.labels:
            if label.name == name:
                return label.id
        raise LabelSetError(
            f"label set {self.name!r} has no class {name!r}; accepted: {', '.join(self.names())}"
        )

    def palette(self) -> list[tuple[int, int, int]]:
        """Return (R, G, B) of each class in the order of their ids."""
        return [label.color for label in self.labels]

    def object_ids(self) -> tuple[int, ...]:
        """Return the ids of people and vehicles, by their names; see `OBJECTS`."""
        return tuple(label.id for label in self.labels if label.name in OBJECTS)

    def thermal_ids(self) -> tuple[int, ...]:
        """Return the ids of the classes that the radiation category map M marks (Eq. 11)."""
        return tuple(label.id for label in self.labels if label.thermal)

    @staticmethod
    def built_in() -> list[str]:
        """Return the names that `load` accepts besides paths."""
        return sorted(path.stem for path in _BUILT_IN.glob("*.yaml"))

    @classmethod
    def load(cls, name_or_path: str | Path) -> LabelSet:
        """Load a built-in label set by name, or a user's own by the path of its YAML file.

        Raises
        ------
        LabelSetError
            The name is unknown, the file is missing, or its content is not a label set.
        """
        path = Path(name_or_path)
        if path.suffix not in (".yaml", ".yml"):
            path = _BUILT_IN / f"{name_or_path}.yaml"
            if str(name_or_path) not in cls.built_in():
                raise LabelSetError(
                    f"unknown label set {str(name_or_path)!r}; "
                    f"accepted: {', '.join(cls.built_in())}, or the path of a .yaml file"
                )
        try:
            content = load_yaml(path)
        except OSError as error:
            raise LabelSetError(
                f"label set file {path} cannot be read: {error.strerror}; check the path"
            ) from error
        except YamlLimitError as error:
            raise LabelSetError(f"label set file {path} is refused: {error}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise LabelSetError(f"label set file {path} is not YAML: {one_line(error)}") from error
        if (
            not isinstance(content, dict)
            or set(content) != {"name", "labels"}
            or not isinstance(content["name"], str)
            or not isinstance(content["labels"], list)
        ):
            raise LabelSetError(
                f"label set file {path} must hold 'name' (text) and 'labels' (a list), only these"
            )
        labels = (_label(index, entry, path) for index, entry in enumerate(content["labels"]))
        return cls(content["name"], tuple(labels))


def _label(index: int, entry: object, path: Path) -> Label:
    if isinstance(entry, dict) and set(entry) == {"name", "color", "thermal"}:
        name, color, thermal = entry["name"], entry["color"], entry["thermal"]
        if (
            isinstance(name, str)
            and isinstance(color, list)
            and all(type(part) is int for part in color)
            and isinstance(thermal, bool)
        ):
            return Label(index, name, tuple(color), thermal)
    raise LabelSetError(
        f"label {index} in {path} is {entry!r}; "
        "accepted: {name: text, color: [R, G, B], thermal: true or false}, only these"
    )
