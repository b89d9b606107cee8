import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magicfuse_ros.model.labels import UNKNOWN
from magicfuse_ros.training.datasets.frames import Box
from magicfuse_ros.training.heat import HEAT, hot_boxes
from magicfuse_ros.training.weak_masks import weak_mask

IDS = {"person": 2, "bike": 3, "car": 1}


def scene(dark):
    """A person (warm, coat cool) and a car; with the pixels that are truly theirs."""
    rng = np.random.default_rng(0)
    visible = rng.integers(90, 110, (120, 160, 3), dtype=np.uint8)
    infrared = rng.integers(20, 30, (120, 160), dtype=np.uint8)
    person, car = np.zeros((2, 120, 160), np.uint8)
    cv2.rectangle(person, (40, 30), (50, 90), 1, -1)
    cv2.circle(person, (45, 25), 6, 1, -1)
    cv2.rectangle(car, (90, 50), (140, 90), 1, -1)
    visible[person > 0] = (150, 40, 60)
    visible[car > 0] = (30, 60, 200)
    infrared[person > 0] = 150
    infrared[45:55][person[45:55] > 0] = 25
    infrared[car > 0] = 60
    if dark:
        visible //= 12
    return visible, infrared, person > 0, car > 0


PERSON = Box("person", 36 / 160, 17 / 120, 55 / 160, 93 / 120)
CAR = Box("car", 86 / 160, 46 / 120, 145 / 160, 95 / 120)


@pytest.mark.parametrize("dark", [False, True])
def test_masks_cover_the_objects_by_day_and_by_heat_at_night(dark):
    visible, infrared, person, car = scene(dark)
    mask = weak_mask(visible, infrared, [PERSON, CAR], IDS)
    for truth, name in ((person, "person"), (car, "car")):
        found = mask == IDS[name]
        assert (found & truth).sum() / (found | truth).sum() > 0.7, name


def test_everything_outside_the_boxes_is_unknown():
    visible, infrared, _, _ = scene(dark=False)
    mask = weak_mask(visible, infrared, [PERSON, CAR], IDS)
    inside = np.zeros(mask.shape, bool)
    for box in (PERSON, CAR):
        x0, y0, x1, y1 = box.pixels(*mask.shape)
        inside[y0:y1, x0:x1] = True
    assert (mask[~inside] == UNKNOWN).all()
    assert set(np.unique(mask)) == {1, 2, UNKNOWN}


def test_works_without_infrared_and_without_boxes():
    visible, _, _, car = scene(dark=False)
    found = weak_mask(visible, None, [CAR], IDS) == IDS["car"]
    assert (found & car).sum() / (found | car).sum() > 0.7
    assert (weak_mask(visible, None, [], IDS) == UNKNOWN).all()


@settings(deadline=None, max_examples=30)
@given(
    corners=st.tuples(*[st.floats(-0.2, 1.2)] * 4),
    kind=st.sampled_from(sorted(IDS)),
    warm=st.booleans(),
)
def test_any_box_gives_some_object_and_the_same_one_twice(corners, kind, warm):
    visible, infrared, _, _ = scene(dark=False)
    x0, x1 = sorted(corners[:2])
    y0, y1 = sorted(corners[2:])
    boxes = [Box(kind, x0, y0, x1, y1)]
    masks = [weak_mask(visible, infrared if warm else None, boxes, IDS) for _ in range(2)]
    np.testing.assert_array_equal(*masks)
    assert set(np.unique(masks[0])) <= {IDS[kind], UNKNOWN}
    assert (masks[0] == IDS[kind]).any()


def test_hot_boxes_find_people_and_leave_flat_heat_alone():
    infrared = np.full((240, 320), 40, np.uint8)
    infrared[80:140, 100:120] = 220  # a person
    infrared[180:230, 20:300] = 220  # a warm road
    (box,) = hot_boxes(infrared)
    assert box.kind == HEAT
    x0, y0, x1, y1 = box.pixels(240, 320)
    assert abs(x0 - 100) + abs(y0 - 80) + abs(x1 - 120) + abs(y1 - 140) < 12
    assert hot_boxes(np.full((240, 320), 40, np.uint8)) == ()
