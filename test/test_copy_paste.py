"""People of one frame pasted into another: planes, labels and boxes go together."""

from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from dataset_trees import HEIGHT, WIDTH, everything

from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.training.datasets.cache import CacheSettings, open_cache
from magicfuse_ros.training.datasets.copy_paste import Donors
from magicfuse_ros.training.datasets.crops import Crops, DataConfig
from magicfuse_ros.training.datasets.label_maps import CANONICAL
from magicfuse_ros.training.datasets.layouts import find_sources
from magicfuse_ros.training.datasets.pixels import Cut, Pixels

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


class Planes(NamedTuple):
    """What lies where the frame was, after pasting."""

    boxes: tuple
    visible: np.ndarray
    infrared: np.ndarray
    labels: np.ndarray
    weight: np.ndarray


def pasted(source, index, seed):
    """Paste into the whole frame; with the seed None it stays as it is."""
    item, pixels, data = source.items[index], Pixels(), source.bytes_on(torch.device("cpu"))
    place, boxes = pixels.add(data, item), item.boxes
    if seed is not None:
        rng = np.random.default_rng(seed)
        boxes = Donors(source).paste(pixels, place, data, item, rng)
    middle = (item.width / 2.0, item.height / 2.0)
    shape = (item.height, item.width)
    colours, known = pixels.cut([Cut(middle, 0.0, 1.0, False)], shape, torch.device("cpu"))
    colours, known = colours[0].numpy(), known[0].numpy()
    return Planes(boxes, colours[..., :3], colours[..., 3], known[..., 0], known[..., 1])


@pytest.mark.parametrize("seed", range(8))
def test_a_pasted_person_is_the_donors_in_every_plane(source, seed):
    before, donor = pasted(source, EMPTY, None), pasted(source, DAY, None)
    after = pasted(source, EMPTY, seed)
    assert before.boxes == ()
    assert 1 <= len(after.boxes) <= 3
    assert {box.kind for box in after.boxes} == {"person"}
    x0, y0, x1, y1 = donor.boxes[0].pixels(HEIGHT, WIDTH)
    outside = np.ones((HEIGHT, WIDTH), bool)
    for box in after.boxes:
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
    assert (after.weight[~outside] == 255).all()
    for name in ("visible", "infrared", "labels", "weight"):
        np.testing.assert_array_equal(getattr(after, name)[outside], getattr(before, name)[outside])


def test_its_edge_is_blended_as_opencv_blurs_its_mask(source):
    donor, before = pasted(source, DAY, None), pasted(source, EMPTY, None)
    seed = next(k for k in range(20) if len(pasted(source, EMPTY, k).boxes) == 1)
    after = pasted(source, EMPTY, seed)
    x0, y0, x1, y1 = donor.boxes[0].pixels(HEIGHT, WIDTH)
    left, top, right, bottom = after.boxes[0].pixels(HEIGHT, WIDTH)
    mask = (donor.labels[y0:y1, x0:x1] == PERSON).astype(np.float32)
    share = cv2.GaussianBlur(mask, (3, 3), 0.0)
    expected = [
        np.rint(
            before.infrared[top:bottom, left:right] * (1.0 - share[:, ::flip])
            + (donor.infrared[y0:y1, x0:x1] * share)[:, ::flip]
        )
        for flip in (1, -1)
    ]
    made = after.infrared[top:bottom, left:right]
    assert any(np.abs(made - each).max() <= 1 for each in expected)


def test_it_is_seeded_and_leaves_the_cache_alone(source):
    planes = [source.visible(EMPTY), source.infrared(EMPTY), source.labels(EMPTY)]
    first, second = pasted(source, EMPTY, 3), pasted(source, EMPTY, 3)
    np.testing.assert_array_equal(first.visible, second.visible)
    assert first.boxes == second.boxes
    assert first.boxes != pasted(source, EMPTY, 4).boxes
    now = [source.visible(EMPTY), source.infrared(EMPTY), source.labels(EMPTY)]
    assert all(np.array_equal(*pair) for pair in zip(planes, now, strict=True))


def test_the_night_gets_people_of_the_night(source):
    after = pasted(source, NIGHT, 0)
    assert len(after.boxes) > len(source.items[NIGHT].boxes)
    assert after.visible.max() < pasted(source, DAY, None).visible.max()


def test_a_frame_without_annotation_stays_as_it_is(tmp_path):
    everything(tmp_path)
    (found,) = (one for one in find_sources(tmp_path, "train", ["roadscene"]))
    source = open_cache(found, tmp_path / "cache", CacheSettings(width=48, height=40), ignore)
    assert pasted(source, 0, 0).boxes == source.items[0].boxes
    np.testing.assert_array_equal(pasted(source, 0, 0).visible, source.visible(0))


def test_samples_hold_more_people_where_it_is_asked_for(source):
    labels = LabelSet.load("drive")
    person = next(label.id for label in labels.labels if label.name == "person")

    def pixels(paste):
        config = DataConfig(crop=HEIGHT, crop_width=WIDTH, paste=paste, warp=0.0)
        batch = Crops([source], config, labels, seed=1).batch(0, 30)
        weighed = float((batch["thermal_weight"] == 1.0).sum())
        return int((batch["labels"] == person).sum()), weighed

    none, half = pixels(0.0), pixels(0.9)
    assert half[0] > 1.2 * none[0]
    assert half[1] > 1.2 * none[1]


def test_a_chance_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"paste is 1\.5"):
        DataConfig(crop=32, paste=1.5)
