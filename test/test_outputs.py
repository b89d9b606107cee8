"""camera_info in another size, the coloured mask, and the classes of label_info."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CameraInfo, RegionOfInterest

from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.ros.node.id_map import IdMap
from magicfuse_ros.ros.outputs import class_map, label_info, scale_camera_info
from magicfuse_ros.runtime.class_colors import colorize


def camera(width=640, height=480, **fields):
    info = CameraInfo(width=width, height=height, distortion_model="plumb_bob", **fields)
    info.header.frame_id = "camera_optical"
    info.d = [0.1, -0.2, 0.001, 0.002, 0.05]
    info.k = [500.0, 0.3, 310.0, 0.0, 510.0, 250.0, 0.0, 0.0, 1.0]
    info.r = [0.9998, 0.02, 0.0, -0.02, 0.9998, 0.0, 0.0, 0.0, 1.0]
    info.p = [480.0, 0.0, 305.0, -48.0, 0.0, 490.0, 245.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


def project(matrix, point):
    """(column, row) of a point (x, y, z) through K (9 numbers) or P (12)."""
    matrix = np.asarray(matrix).reshape(3, -1)
    u, v, w = matrix @ np.append(point, 1.0)[: matrix.shape[1]]
    return np.array([u / w, v / w])


POINTS = [(0.0, 0.0, 1.0), (0.5, -0.3, 2.0), (-1.0, 0.7, 3.0)]


def test_the_cameras_own_size_changes_nothing():
    info = camera(binning_x=1, binning_y=1)
    scaled = scale_camera_info(info, (640, 480))
    assert scaled == info
    assert scaled is not info


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000))
def test_points_fall_on_the_same_part_of_the_picture(width, height):
    info = camera()
    before = copy.deepcopy(info)
    scaled = scale_camera_info(info, (width, height))

    assert info == before
    assert (scaled.width, scaled.height) == (width, height)
    scale = np.array([width / 640, height / 480])
    for point in POINTS:
        for old, new in ((info.k, scaled.k), (info.p, scaled.p)):
            # From the picture's corner, which lies half a pixel before the first pixel's centre.
            corner_old, corner_new = project(old, point) + 0.5, project(new, point) + 0.5
            assert corner_new == pytest.approx(corner_old * scale, rel=1e-9)
    assert scaled.header == info.header
    assert scaled.distortion_model == info.distortion_model
    assert list(scaled.d) == list(info.d)
    assert np.array_equal(scaled.r, info.r)


def test_the_baseline_of_a_stereo_camera_stays():
    scaled = scale_camera_info(camera(), (320, 240))
    assert scaled.p[3] / scaled.p[0] == pytest.approx(-48.0 / 480.0)


def test_going_there_and_back_is_the_same():
    there = scale_camera_info(camera(), (320, 180))
    back = scale_camera_info(there, (640, 480))
    assert back.k == pytest.approx(camera().k)
    assert back.p == pytest.approx(camera().p)


def test_region_and_binning_are_folded_in():
    roi = RegionOfInterest(x_offset=100, y_offset=40, width=400, height=300, do_rectify=True)
    info = camera(binning_x=2, binning_y=2, roi=roi)
    assert scale_camera_info(info, (200, 150)) == info  # the size of the picture as it is

    scaled = scale_camera_info(info, (100, 50))
    assert scaled.roi == RegionOfInterest(do_rectify=True)
    assert (scaled.binning_x, scaled.binning_y) == (0, 0)
    for point in POINTS:
        corner = project(info.k, point) + 0.5 - [100, 40]
        expected = corner * [100 / 400, 50 / 300]
        assert project(scaled.k, point) + 0.5 == pytest.approx(expected, rel=1e-9)


def test_an_uncalibrated_camera_stays_uncalibrated():
    info = CameraInfo(width=640, height=480)
    scaled = scale_camera_info(info, (320, 240))
    assert (scaled.width, scaled.height) == (320, 240)
    assert not np.any(scaled.k)
    assert not np.any(scaled.p)


def test_an_info_without_size_gets_one():
    info = camera(width=0, height=0)
    scaled = scale_camera_info(info, (320, 240))
    assert (scaled.width, scaled.height) == (320, 240)
    assert np.array_equal(scaled.k, info.k)


# --- colour


PALETTE = [(0, 0, 0), (200, 0, 100), (0, 250, 0)]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32))
def test_colours_cover_half_of_magimg_where_a_class_is_known(width, height, seed):
    rng = np.random.default_rng(seed)
    mask = rng.choice(np.array([0, 1, 2, 3, 200, 255], np.uint8), (height, width))
    magimg = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = magimg.copy()

    colored = colorize(mask, magimg, PALETTE)

    assert np.array_equal(magimg, before)
    assert colored.dtype == np.uint8
    for row in range(height):
        for column in range(width):
            label, seen = mask[row, column], magimg[row, column].astype(float)
            if label in (1, 2):
                seen = (seen + PALETTE[label]) / 2
            assert np.abs(colored[row, column] - seen).max() <= 0.5


def test_sizes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"\(4, 5\) and MagImg \(4, 6, 3\)"):
        colorize(np.zeros((4, 5), np.uint8), np.zeros((4, 6, 3), np.uint8), PALETTE)


@pytest.mark.parametrize("name", LabelSet.built_in())
def test_every_built_in_palette_colours_its_classes(name):
    labels = LabelSet.load(name)
    mask = np.arange(len(labels), dtype=np.uint8)[None]
    grey = np.full((1, len(labels), 3), 128, np.uint8)
    changed = (colorize(mask, grey, labels.palette()) != grey).any(axis=2)[0]
    assert changed.tolist() == [any(color) for color in labels.palette()]


# --- label_info


def test_classes_keep_their_ids_without_a_map():
    names = ["unlabeled", "car", "person"]
    assert class_map(names, IdMap().table(names)) == list(enumerate(names))


def test_classes_have_the_ids_that_the_mask_has():
    names = ["unlabeled", "car", "person", "bike"]
    table = IdMap.parse("person:6, car:7, unlabeled:0").table(names)
    assert class_map(names, table) == [(0, "unlabeled"), (6, "person"), (7, "car")]


def test_label_info_lists_the_classes():
    pytest.importorskip(
        "vision_msgs", reason="vision_msgs is not on PyPI; it comes with a ROS installation"
    )
    names = ["unlabeled", "car"]
    info = label_info(names, IdMap().table(names))
    assert [(entry.class_id, entry.class_name) for entry in info.class_map] == [
        (0, "unlabeled"),
        (1, "car"),
    ]


def test_label_info_is_none_without_vision_msgs(monkeypatch):
    monkeypatch.setattr("magicfuse_ros.ros.outputs.LabelInfo", None)
    assert label_info(["car"], IdMap().table(["car"])) is None
