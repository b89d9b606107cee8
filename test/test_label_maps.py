import numpy as np
import pytest

from magicfuse_ros.model.labels import UNKNOWN, LabelSet
from magicfuse_ros.training.datasets import label_maps


def mapped(classes, labels, source_id):
    """Name of the class in the label set that a source's id becomes; None where unknown."""
    table = label_maps.from_canonical(LabelSet.load(labels))[label_maps.to_canonical(classes)]
    result = int(table[source_id])
    return None if result == UNKNOWN else LabelSet.load(labels).names()[result]


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


def test_tables_are_complete():
    for classes in (label_maps.MFNET, label_maps.FMB, label_maps.CAMVID, label_maps.CITYSCAPES):
        table = label_maps.to_canonical(classes)
        assert set(np.flatnonzero(table != UNKNOWN)) == set(classes)
