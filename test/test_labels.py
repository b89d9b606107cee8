"""Label sets: the built-in ones, a user's own, and every way of getting one wrong."""

from __future__ import annotations

import pytest

from magicfuse_ros.model.labels import UNKNOWN, Label, LabelSet, LabelSetError

MFNET = {
    "unlabeled": (0, 0, 0),
    "car": (64, 0, 128),
    "person": (64, 64, 0),
    "bike": (0, 128, 192),
    "curve": (0, 0, 192),
    "car_stop": (128, 128, 0),
    "guardrail": (64, 64, 128),
    "color_cone": (192, 128, 128),
    "bump": (192, 64, 0),
}

NAMES = {
    "mfnet": list(MFNET),
    "fmb": [
        "background",
        *("road", "sidewalk", "building", "lamp", "sign", "vegetation", "sky", "person", "car"),
        *("truck", "bus", "motorcycle", "bicycle", "pole"),
    ],
    "cityscapes": [
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic_light"),
        *("traffic_sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck"),
        *("bus", "train", "motorcycle", "bicycle"),
    ],
    "drive": [
        *("unlabeled", "car", "person", "bike", "road", "sidewalk", "building", "vegetation"),
        *("sky", "sign", "pole", "fence"),
    ],
}

THERMAL = {
    "mfnet": {"car", "person"},
    "fmb": {"person", "car", "truck", "bus", "motorcycle"},
    "cityscapes": {"person", "rider", "car", "truck", "bus", "train", "motorcycle"},
    "drive": {"person"},
}


def test_the_built_in_sets():
    assert LabelSet.built_in() == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_classes_in_the_order_of_their_ids(name):
    labels = LabelSet.load(name)
    assert labels.name == name
    assert labels.names() == NAMES[name]
    assert len(labels) == {"mfnet": 9, "fmb": 15, "cityscapes": 19, "drive": 12}[name]
    assert [label.id for label in labels.labels] == list(range(len(labels)))
    assert {labels.names()[index] for index in labels.thermal_ids()} == THERMAL[name]
    assert len(set(labels.palette())) == len(labels), "two classes share a colour"


def test_mfnet_has_the_colours_of_the_release():
    assert dict(zip(MFNET, LabelSet.load("mfnet").palette(), strict=True)) == MFNET


def test_drive_keeps_the_ids_of_mfnet():
    assert LabelSet.load("drive").names()[:4] == LabelSet.load("mfnet").names()[:4]


def test_a_class_is_found_by_its_name():
    assert LabelSet.load("mfnet").id_of("person") == 2
    with pytest.raises(LabelSetError, match="no class 'cat'; accepted: unlabeled, car, person"):
        LabelSet.load("mfnet").id_of("cat")


OWN = """\
name: farm
labels:
  - {name: ground, color: [90, 60, 30], thermal: false}
  - {name: cow, color: [255, 255, 255], thermal: true}
"""


@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_a_users_own_set(tmp_path, suffix):
    path = tmp_path / f"own.{suffix}"
    path.write_text(OWN)
    expected = LabelSet(
        "farm", (Label(0, "ground", (90, 60, 30), False), Label(1, "cow", (255, 255, 255), True))
    )
    assert LabelSet.load(path) == expected
    assert LabelSet.load(str(path)) == expected


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(LabelSetError) as caught:
        LabelSet.load("kitti")
    message = str(caught.value)
    assert "'kitti'" in message
    assert "cityscapes, drive, fmb, mfnet, or the path of a .yaml file" in message


@pytest.mark.parametrize("name", ["", "../label_sets/mfnet", "mfnet.yaml/"])
def test_no_name_reaches_outside_the_built_in_sets(name):
    with pytest.raises(LabelSetError):
        LabelSet.load(name)


ENTRY = "{name: cow, color: [1, 2, 3], thermal: true}"
WRONG_FILES = {
    "empty": ("", "must hold 'name' (text) and 'labels' (a list)"),
    "a list": ("- 1\n", "must hold"),
    "no labels": ("name: farm\n", "must hold"),
    "no name": (f"labels: [{ENTRY}]\n", "must hold"),
    "name is a number": (f"name: 3\nlabels: [{ENTRY}]\n", "must hold"),
    "labels is a mapping": ("name: farm\nlabels: {cow: 1}\n", "must hold"),
    "unknown key": (f"name: farm\nlabels: [{ENTRY}]\nmore: 1\n", "only these"),
    "no YAML": ("name: [farm\n", "is not YAML"),
    "no text": (b"\xff\xfe\x00", "is not YAML"),
    "no label": ("name: farm\nlabels: []\n", "has 0 labels; accepted: 1 to 254"),
    "a label is text": ("name: farm\nlabels: [cow]\n", "label 0 in "),
    "no colour": ("name: farm\nlabels: [{name: cow, thermal: true}]\n", "label 0 in "),
    "no thermal": ("name: farm\nlabels: [{name: cow, color: [1, 2, 3]}]\n", "thermal: true or"),
    "misspelt key": (
        f"name: farm\nlabels: [{ENTRY[:-1]}, termal: true}}]\n",
        "only these",
    ),
    "colour is text": (f"name: farm\nlabels: [{ENTRY.replace('[1, 2, 3]', 'red')}]\n", "[R, G, B]"),
    "colour of two": (f"name: farm\nlabels: [{ENTRY.replace(', 3', '')}]\n", "color [1, 2]"),
    "colour too high": (f"name: farm\nlabels: [{ENTRY.replace('3]', '256]')}]\n", "each 0 to 255"),
    "colour negative": (f"name: farm\nlabels: [{ENTRY.replace('3]', '-1]')}]\n", "each 0 to 255"),
    "colour of fractions": (f"name: farm\nlabels: [{ENTRY.replace('3]', '0.5]')}]\n", "0.5"),
    "name is a number, in a label": (
        f"name: farm\nlabels: [{ENTRY.replace('cow', '4')}]\n",
        "name: text",
    ),
    "thermal is text": (f"name: farm\nlabels: [{ENTRY.replace('true', 'hot')}]\n", "true or false"),
    "twice the same name": (f"name: farm\nlabels: [{ENTRY}, {ENTRY}]\n", "repeats the names"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_wrong_file_is_explained(tmp_path, case):
    content, message = WRONG_FILES[case]
    path = tmp_path / "own.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LabelSetError) as caught:
        LabelSet.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value) or "'farm'" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LabelSetError, match=r"none\.yaml cannot be read: No such file"):
        LabelSet.load(tmp_path / "none.yaml")


def test_yaml_cannot_make_objects(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(f"name: !!python/object/apply:os.mkdir ['{tmp_path}/ran']\nlabels: []\n")
    with pytest.raises(LabelSetError, match="is not YAML"):
        LabelSet.load(path)
    assert not (tmp_path / "ran").exists()


def grey(count):
    return tuple(Label(i, f"class {i}", (i, i, i), False) for i in range(count))


def test_the_id_of_the_unknown_stays_free():
    assert len(LabelSet("many", grey(UNKNOWN - 1))) == 254
    with pytest.raises(LabelSetError, match="has 255 labels; accepted: 1 to 254"):
        LabelSet("many", grey(UNKNOWN))


def test_ids_follow_the_order():
    with pytest.raises(LabelSetError, match="'b' of 'own' has id 2; its place gives 1"):
        LabelSet("own", (Label(0, "a", (0, 0, 0), False), Label(2, "b", (1, 1, 1), False)))


def test_a_yaml_bomb_is_refused(tmp_path):
    """The error message would show what the aliases stand for: 10^9 texts."""
    lines = ["name: bomb", "labels:", "  - &a0 ha"]
    lines += [f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines) + "\n")

    with pytest.raises(LabelSetError, match="is refused: its aliases make more of it"):
        LabelSet.load(path)
