"""Resizing, padding and cropping between a camera's frame and the model's input."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magicfuse_ros.runtime.letterbox import (
    Letterbox,
    classify,
    quantise,
    resize,
    to_camera,
    to_input,
    to_picture,
)

SIDES = st.integers(1, 5000)


@given(SIDES, SIDES, st.integers(8, 700), st.integers(8, 700), st.sampled_from([1, 4, 8, 16]))
def test_a_frame_of_any_size_fits_into_the_resolution(height, width, across, down, multiple):
    across, down = max(across, multiple), max(down, multiple)
    place = Letterbox.fitting((height, width), (across, down), multiple)

    assert min(place.content) >= 1
    assert max(place.content) <= max(across, down)
    assert min(place.content) <= min(across, down)
    for content, padded in zip(place.content, place.padded, strict=True):
        assert padded % multiple == 0
        assert 0 <= padded - content < multiple
    # One side fills the resolution, turned where the frame is portrait.
    sides = {place.content[0], place.content[1]}
    assert sides & {across, down}


@given(SIDES, SIDES, st.integers(1, 90), st.integers(1, 90))
def test_a_frame_lies_in_the_input_of_another_size_too(height, width, down, across):
    own, padded = Letterbox.fitting((height, width), (320, 240), 8), (8 * down, 8 * across)
    place = own.inside(padded)
    assert (place.camera, place.padded) == (own.camera, padded)
    assert own.inside(own.padded) == own
    for content, former, most in zip(place.content, own.content, padded, strict=True):
        assert 1 <= content <= min(former, most)
    image = to_input(
        np.full((20, 30, 3), 7, np.uint8), Letterbox.fitting((20, 30), (64, 48), 8).inside(padded)
    )
    assert image.shape[:2] == padded
    assert (image == 7).all()


@given(st.integers(50, 3000), st.integers(50, 3000))
def test_the_aspect_is_kept(height, width):
    place = Letterbox.fitting((height, width), (320, 240), 8)
    scale = place.content[0] / height, place.content[1] / width
    # Rounding to whole pixels moves a side by half a pixel at most.
    assert abs(scale[0] * width - place.content[1]) <= 0.5 + 0.5 * width / height
    assert abs(scale[1] * height - place.content[0]) <= 0.5 + 0.5 * height / width


@pytest.mark.parametrize(
    ("camera", "content", "padded"),
    [
        ((480, 640), (240, 320), (240, 320)),
        ((640, 480), (320, 240), (320, 240)),
        ((720, 1280), (180, 320), (184, 320)),
        ((1, 1), (240, 240), (240, 240)),
        ((1, 4000), (1, 320), (8, 320)),
        ((4000, 1), (320, 1), (320, 8)),
        ((500, 500), (240, 240), (240, 240)),
    ],
)
def test_known_places(camera, content, padded):
    assert Letterbox.fitting(camera, (320, 240), 8) == Letterbox(camera, content, padded)


def test_an_empty_frame_is_refused():
    with pytest.raises(ValueError, match="0x7; accepted: at least 1x1"):
        Letterbox.fitting((7, 0), (320, 240), 8)


@settings(max_examples=30, deadline=None)
@given(SIDES.map(lambda side: 1 + side // 20), SIDES.map(lambda side: 1 + side // 20))
def test_a_plain_colour_survives_there_and_back(height, width):
    frame = np.empty((height, width, 3), np.uint8)
    frame[:] = (10, 200, 90)
    place = Letterbox.fitting((height, width), (64, 48), 8)

    image = to_input(frame, place)
    back = to_camera(image, place)

    assert image.shape == (*place.padded, 3)
    assert back.shape == frame.shape
    assert (image == frame[0, 0]).all()
    assert (back == frame).all()


def test_a_picture_stays_where_it_is():
    # A ramp shows any shift: there and back it may not move by a tenth of a pixel.
    ramp = np.linspace(20, 230, 640, dtype=np.float32)
    frame = np.repeat(np.repeat(ramp[None, :, None], 361, axis=0), 3, axis=2).round()
    frame = frame.astype(np.uint8)
    place = Letterbox.fitting((361, 640), (320, 240), 16)

    back = to_camera(to_input(frame, place), place).astype(np.float32)

    inside = np.s_[10:-10, 10:-10]
    shift = (back[inside] - frame[inside]).mean() / np.diff(ramp).mean()
    assert abs(shift) < 0.1


def test_padding_reflects_and_is_cropped_off():
    frame = np.arange(5 * 8 * 3, dtype=np.uint8).reshape(5, 8, 3)
    place = Letterbox((5, 8), (5, 8), (8, 8))

    image = to_input(frame, place)

    assert (image[5:] == frame[[3, 2, 1]]).all()
    assert (to_camera(image, place) == frame).all()


@pytest.mark.parametrize("step", [1, -1, 2])
def test_views_are_accepted_and_left_alone(step):
    whole = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    view = whole[::step, :, ::-1]
    view.flags.writeable = False
    before = whole.copy()

    image = to_input(view, Letterbox.fitting(view.shape[:2], (64, 48), 8))

    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert not np.shares_memory(image, whole)
    assert (whole == before).all()
    plain = np.ascontiguousarray(view)
    assert (image == to_input(plain, Letterbox.fitting(plain.shape[:2], (64, 48), 8))).all()


def test_shrinking_averages_so_that_nothing_aliases():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200
    assert (resize(stripes, (16, 16)) == 100).all()


def test_the_same_size_is_not_copied():
    image = np.zeros((4, 5, 3), np.uint8)
    assert resize(image, (4, 5)) is image


def test_floats_become_the_nearest_byte_and_are_clamped():
    values = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 0.5, 254.6 / 255, 1.0, 7.0])
    assert quantise(values).tolist() == [0, 0, 0, 1, 128, 255, 255, 255]


@given(st.integers(0, 255))
def test_every_byte_survives_as_a_float(value):
    assert quantise(torch.tensor([value / 255])).item() == value


def test_a_picture_has_its_channels_last():
    image = torch.arange(2 * 3 * 4).reshape(1, 2, 3, 4) / 255
    assert (to_picture(image) == np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0)).all()
    assert to_picture(image[:, :1]).shape == (3, 4)


def test_classes_keep_their_borders_and_confidence_falls_there():
    probabilities = np.zeros((3, 6, 8), np.uint8)
    probabilities[2, :, :4] = 255
    probabilities[0, :, 4:] = 255

    mask, confidence = classify(probabilities, Letterbox((48, 64), (24, 32), (24, 32)))

    assert (mask[:, :32] == 2).all()
    assert (mask[:, 32:] == 0).all()
    assert (confidence[:, :16] == 255).all()
    assert 127 <= confidence[0, 31] < 160


def test_a_diagonal_border_is_smooth():
    rows, columns = np.mgrid[:12, :16]
    sure = np.clip(128 + 40 * (columns - rows), 0, 255).astype(np.uint8)
    mask, _ = classify(np.stack([255 - sure, sure]), Letterbox((96, 128), (48, 64), (48, 64)))

    rows, columns = np.mgrid[:96, :128]
    exact = (columns >= rows).astype(np.uint8)
    blocky = cv2.resize((sure > 127).astype(np.uint8), (128, 96), interpolation=cv2.INTER_NEAREST)
    assert (mask != exact).mean() < 0.5 * (blocky != exact).mean()


def test_no_third_class_appears_between_two_others():
    # Class 2 comes second on both sides of the border; between them it would come first.
    probabilities = np.zeros((3, 4, 4), np.uint8)
    probabilities[0, :, :2] = probabilities[1, :, 2:] = 140
    probabilities[2] = 115
    mask, _ = classify(probabilities, Letterbox((32, 32), (16, 16), (16, 16)))
    assert set(np.unique(mask)) == {0, 1}


def test_a_mask_is_cropped_like_the_picture():
    probabilities = np.zeros((2, 4, 4), np.uint8)
    probabilities[0, :2] = 255
    probabilities[1, 2:] = 255
    # The lower half is padding: nothing of class 1 may be seen.
    mask, confidence = classify(probabilities, Letterbox((30, 64), (7, 16), (16, 16)))
    assert mask.shape == confidence.shape == (30, 64)
    assert not mask.any()


@pytest.mark.parametrize("camera", [(1, 1), (1, 900), (900, 1), (3, 5)])
def test_masks_of_odd_sizes(camera):
    probabilities = np.zeros((2, 12, 16), np.uint8)
    probabilities[1] = 200
    mask, confidence = classify(probabilities, Letterbox.fitting(camera, (64, 48), 4))
    assert mask.shape == confidence.shape == camera
