import numpy as np
import pytest

from magicfuse_ros.model.labels import UNKNOWN, Label, LabelSet
from magicfuse_ros.training.datasets import label_maps

DATASETS = {
    "mfnet": label_maps.MFNET, "fmb": label_maps.FMB, "camvid": label_maps.CAMVID,
    "cityscapes": label_maps.CITYSCAPES,
}  # fmt: skip
SETS = ("drive", "mfnet", "fmb", "cityscapes")


def mapped(classes, labels, source_id):
    """Name of the class in the label set that a source's id becomes; None where unknown."""
    labels = labels if isinstance(labels, LabelSet) else LabelSet.load(labels)
    table = label_maps.from_canonical(labels)[label_maps.to_canonical(classes)]
    result = int(table[source_id])
    return None if result == UNKNOWN else labels.names()[result]


def own_set(*names):
    """Return a user's own label set."""
    return LabelSet(
        "own", tuple(Label(i, n, (0, 0, 0), thermal=False) for i, n in enumerate(names))
    )


@pytest.mark.parametrize(
    ("source_id", "drive", "mfnet", "fmb", "cityscapes"),
    [
        (0, "sky", "unlabeled", "sky", "sky"),
        (1, "building", "unlabeled", "building", "building"),
        (2, "pole", "unlabeled", "pole", "pole"),
        (3, "road", "unlabeled", "road", "road"),
        (4, "sidewalk", "unlabeled", "sidewalk", "sidewalk"),
        (5, "vegetation", "unlabeled", "vegetation", "vegetation"),
        (6, "sign", "unlabeled", "sign", "traffic_sign"),
        (7, "fence", None, None, "fence"),
        (8, "car", "car", "car", "car"),
        (9, "person", "person", "person", "person"),
        (10, "bike", "bike", "bicycle", "rider"),
        (11, None, None, None, None),
        (255, None, None, None, None),
    ],
)
def test_camvid_classes(source_id, drive, mfnet, fmb, cityscapes):
    expected = {"drive": drive, "mfnet": mfnet, "fmb": fmb, "cityscapes": cityscapes}
    assert {n: mapped(label_maps.CAMVID, n, source_id) for n in expected} == expected


@pytest.mark.parametrize(
    ("classes", "name"),
    [(label_maps.MFNET, "mfnet"), (label_maps.FMB, "fmb")],
)
def test_a_dataset_maps_onto_its_own_set_unchanged(classes, name):
    labels = LabelSet.load(name)
    table = label_maps.from_canonical(labels)[label_maps.to_canonical(classes)]
    assert {i: int(table[i]) for i in classes} == {i: i for i in classes}


def test_cityscapes_maps_onto_its_own_train_classes():
    names = LabelSet.load("cityscapes").names()
    ids = {mapped(label_maps.CITYSCAPES, "cityscapes", i) for i in label_maps.CITYSCAPES}
    assert ids == set(names)


def test_mfnet_background_is_unknown_to_a_set_that_names_the_scenery():
    assert mapped(label_maps.MFNET, "drive", 0) is None
    assert mapped(label_maps.MFNET, "drive", 1) == "car"


def test_the_drive_set_gets_training_pixels_for_every_class_but_unlabeled():
    names = {mapped(label_maps.CAMVID, "drive", i) for i in label_maps.CAMVID}
    assert names == set(LabelSet.load("drive").names()) - {"unlabeled"}


def test_a_users_own_set_is_matched_by_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nlabels:\n"
        "  - {name: nothing, color: [0, 0, 0], thermal: false}\n"
        "  - {name: Pedestrian, color: [255, 0, 0], thermal: true}\n"
        "  - {name: road, color: [9, 9, 9], thermal: false}\n"
    )
    assert mapped(label_maps.CAMVID, str(path), 9) == "Pedestrian"
    assert mapped(label_maps.CAMVID, str(path), 3) == "road"
    assert mapped(label_maps.CAMVID, str(path), 8) is None


# What a pixel may be called that a set has no finer name for.
COARSER = {
    "truck": {"car"}, "bus": {"car"}, "rider": {"person"}, "bicycle": {"bike"},
    "bicyclist": {"bike", "rider", "bicycle"}, "motorcycle": {"bike"}, "bike": {"bicycle"},
    "terrain": {"vegetation"},
    "sign": {"traffic sign"}, "lamp": {"sign", "traffic light"}, "guardrail": {"fence"},
    "background": {"unlabeled"},
}  # fmt: skip


@pytest.mark.parametrize("labels", [
    *SETS, own_set("unlabeled", "building", "sky", "person"), own_set("sky", "person", "unlabeled"),
    own_set("sidewalk", "car"), own_set("unlabeled", "car", "fence"), own_set("car", "person"),
])  # fmt: skip
@pytest.mark.parametrize("dataset", DATASETS)
def test_no_class_is_taught_as_another(dataset, labels):
    names = (labels if isinstance(labels, LabelSet) else LabelSet.load(labels)).names()
    names = {name.replace("_", " ") for name in names}
    for source_id, own in DATASETS[dataset].items():
        found = mapped(DATASETS[dataset], labels, source_id)
        found = found and found.replace("_", " ")
        if own in names - {"background"}:
            assert found == own
        elif found != "unlabeled" or own == "background":
            assert found in {None, *COARSER.get(own, ())}
        else:  # it is known to be none of the set's
            assert not names & {"road", "sidewalk", "building", "vegetation", "sky", "pole"}


def test_what_a_set_without_road_leaves_open_is_ignored():
    towns = own_set("unlabeled", "building", "sky", "person")
    assert [mapped(label_maps.CAMVID, towns, i) for i in (0, 1, 3, 4, 9)] == [
        "sky", "building", None, None, "person",
    ]  # fmt: skip
    assert mapped(label_maps.MFNET, towns, 0) is None  # it may be sky, or a building
    objects = own_set("unlabeled", "car", "person")
    assert mapped(label_maps.CAMVID, objects, 3) == "unlabeled"
    assert mapped(label_maps.MFNET, objects, 0) == "unlabeled"
    fences = own_set("unlabeled", "car", "fence")
    assert mapped(label_maps.MFNET, fences, 0) is None
    assert mapped(label_maps.CAMVID, fences, 3) == "unlabeled"


def test_tables_are_complete():
    for classes in DATASETS.values():
        table = label_maps.to_canonical(classes)
        assert set(np.flatnonzero(table != UNKNOWN)) == set(classes)
