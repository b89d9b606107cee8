"""People of one frame pasted into another: planes, labels and boxes go together."""

import cv2
import numpy as np
import pytest
from dataset_trees import HEIGHT, WIDTH, everything

from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.training.datasets import (
    CacheSettings,
    CropDataset,
    DataConfig,
    find_sources,
    open_cache,
)
from magicfuse_ros.training.datasets.copy_paste import Donors, Picture
from magicfuse_ros.training.datasets.label_maps import CANONICAL

PERSON = CANONICAL.index("person")
# The tree's frames: by day with a person, by night with a person, by day with nobody.
DAY, NIGHT, EMPTY = 0, 1, 2


def ignore(text):
    pass


@pytest.fixture
def source(tmp_path):
    everything(tmp_path)
    (found,) = (one for one in find_sources(tmp_path, "train", ["msrs"]))
    settings = CacheSettings(width=WIDTH, height=HEIGHT)
    return open_cache(found, tmp_path / "cache", settings, ignore)


def pasted(source, index, seed):
    return Donors(source).paste(Picture.of(source, index), np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(8))
def test_a_pasted_person_is_the_donors_in_every_plane(source, seed):
    before, donor = Picture.of(source, EMPTY), Picture.of(source, DAY)
    after = pasted(source, EMPTY, seed)
    assert before.item.boxes == ()
    assert 1 <= len(after.item.boxes) <= 3
    assert {box.kind for box in after.item.boxes} == {"person"}
    x0, y0, x1, y1 = donor.item.boxes[0].pixels(HEIGHT, WIDTH)
    outside = np.ones((HEIGHT, WIDTH), bool)
    for box in after.item.boxes:
        left, top, right, bottom = box.pixels(HEIGHT, WIDTH)
        assert (right - left, bottom - top) == (x1 - x0, y1 - y0)
        outside[top:bottom, left:right] = False
    last = np.s_[top:bottom, left:right]  # nothing was pasted over the last one
    shape = donor.labels[y0:y1, x0:x1] == PERSON
    # Inside its outline, where nothing is blended.
    core = cv2.erode(shape.astype(np.uint8), np.ones((3, 3))) > 0
    assert core.any()

    def is_there(flip):
        return all(
            np.array_equal(
                getattr(donor, name)[y0:y1, x0:x1][core],
                getattr(after, name)[last][:, ::flip][core],
            )
            for name in ("visible", "infrared", "labels")
        )

    assert is_there(1) or is_there(-1)
    for name in ("visible", "infrared", "labels"):
        np.testing.assert_array_equal(getattr(after, name)[outside], getattr(before, name)[outside])


def test_it_is_seeded_and_leaves_the_cache_alone(source):
    planes = [source.visible(EMPTY).copy(), source.infrared(EMPTY).copy()]
    first, second = pasted(source, EMPTY, 3), pasted(source, EMPTY, 3)
    np.testing.assert_array_equal(first.visible, second.visible)
    assert first.item.boxes == second.item.boxes
    assert first.item.boxes != pasted(source, EMPTY, 4).item.boxes
    np.testing.assert_array_equal(source.visible(EMPTY), planes[0])
    np.testing.assert_array_equal(source.infrared(EMPTY), planes[1])


def test_the_night_gets_people_of_the_night(source):
    donors = Donors(source)
    after = donors.paste(Picture.of(source, NIGHT), np.random.default_rng(0))
    assert len(after.item.boxes) > len(source.items[NIGHT].boxes)
    day = Picture.of(source, DAY)
    assert after.visible.max() < day.visible.max()


def test_a_frame_without_annotation_stays_as_it_is(tmp_path):
    everything(tmp_path)
    (found,) = (one for one in find_sources(tmp_path, "train", ["roadscene"]))
    source = open_cache(found, tmp_path / "cache", CacheSettings(width=48, height=40), ignore)
    picture = Picture.of(source, 0)
    assert Donors(source).paste(picture, np.random.default_rng(0)) is picture


def test_samples_hold_more_people_where_it_is_asked_for(source):
    labels = LabelSet.load("drive")
    person = next(label.id for label in labels.labels if label.name == "person")

    def pixels(paste):
        config = DataConfig(crop=HEIGHT, crop_width=WIDTH, paste=paste, warp=0.0)
        samples = CropDataset([source], config, labels, seed=1, samples=30)
        found = [samples[k] for k in range(30)]
        weighed = sum(float((sample["thermal_weight"] == 1.0).sum()) for sample in found)
        return sum(int((sample["labels"] == person).sum()) for sample in found), weighed

    none, half = pixels(0.0), pixels(0.9)
    assert half[0] > 1.2 * none[0]
    assert half[1] > 1.2 * none[1]


def test_a_chance_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"paste is 1\.5"):
        DataConfig(crop=32, paste=1.5)
