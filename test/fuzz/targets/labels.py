"""`LabelSet.load` on a YAML file: any text, or a label set with wrong values in it."""

from __future__ import annotations

import yaml
from fuzz.fields import Fields
from fuzz.files import written

from magicfuse_ros.model.labels import UNKNOWN, LabelSet, LabelSetError

KEYS = ("name", "color", "thermal")


def check(data: bytes) -> None:
    fields = Fields(data)
    content = fields.rest() if fields.flag() else dump(label_set(fields))
    path = written("labels.yaml", content)
    try:
        labels = LabelSet.load(path)
    except LabelSetError as error:
        assert len(str(error)) < 10_000
        return
    assert 1 <= len(labels) < UNKNOWN
    assert isinstance(labels.name, str)
    assert all(type(part) is int and 0 <= part <= 255 for rgb in labels.palette() for part in rgb)
    assert all(labels.id_of(name) == index for index, name in enumerate(labels.names()))
    entries = [
        {"name": label.name, "color": list(label.color), "thermal": label.thermal}
        for label in labels.labels
    ]
    again = dump({"name": labels.name, "labels": entries})
    assert LabelSet.load(written("labels.yaml", again)) == labels


def label_set(fields: Fields) -> object:
    """A label set, now and then with some other value in a place of it."""

    def maybe(value: object) -> object:
        return fields.value() if fields.byte() >= 230 else value

    labels = []
    for _ in range(fields.byte() % 5):
        color = [maybe(fields.byte()) for _ in range(3)]
        values = (maybe(fields.text()), maybe(color), maybe(fields.flag()))
        labels.append(maybe(dict(zip(KEYS, values, strict=True))))
    return maybe({"name": maybe(fields.text()), "labels": maybe(labels)})


def dump(values: object) -> bytes:
    return yaml.dump(values, Dumper=yaml.CSafeDumper, encoding="utf-8", allow_unicode=True)
