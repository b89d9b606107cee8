"""Projecting and painting: against OpenCV's own projection, and on scenes whose answer is known."""

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sensor_msgs.msg import CameraInfo, RegionOfInterest

from magicfuse_ros.ros.cloud.camera_model import CameraModel
from magicfuse_ros.ros.cloud.cloud_errors import CloudError
from magicfuse_ros.ros.cloud.painting import Occlusion, Pictures, in_front, paint

SIZE = (64, 48)
K = [50.0, 0.0, 31.5, 0.0, 52.0, 23.5, 0.0, 0.0, 1.0]
# Lenses as calibrations give them: barrel, wide barrel with tangential parts, rational, fisheye.
LENSES = {
    "plumb_bob": [-0.28, 0.07, 0.0002, -0.0003, 0.0],
    "four": [-0.3, 0.1, 0.001, -0.002],
    "rational_polynomial": [0.5, -0.2, 0.0003, -0.0001, 0.02, 0.8, -0.05, 0.01],
    "thin prism": [0.5, -0.2, 0.0003, -0.0001, 0.02, 0.8, -0.05, 0.01, 0.002, 0.001, -0.002, 0.001],
    "equidistant": [0.01, -0.005, 0.002, -0.0005],
}
MODELS = {"four": "plumb_bob", "thin prism": "rational_polynomial"}


def info(model="plumb_bob", d=(), size=SIZE, k=K, **changes):
    p = [k[0], 0.0, k[2], 0.0, 0.0, k[4], k[5], 0.0, 0.0, 0.0, 1.0, 0.0]
    fields = {"p": p, "r": np.eye(3).ravel(), **changes}
    return CameraInfo(
        width=size[0], height=size[1], distortion_model=model, d=list(d), k=k, **fields
    )


def pictures(size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    shape = size[::-1]
    return Pictures(
        rng.integers(0, 12, shape, np.uint8),
        rng.integers(0, 256, shape, np.uint8),
        rng.integers(0, 256, (*shape, 3), np.uint8),
    )


def opencv(points, lens):
    """Project with OpenCV: (N, 2) pixel coordinates of (3, N) points."""
    matrix = np.array(K).reshape(3, 3)
    zero = np.zeros(3)
    d = np.array(LENSES[lens]) if lens else None
    if lens == "equidistant":
        found, _ = cv2.fisheye.projectPoints(points.T.reshape(-1, 1, 3), zero, zero, matrix, d)
    else:
        found, _ = cv2.projectPoints(points.T.reshape(-1, 1, 3), zero, zero, matrix, d)
    return found.reshape(-1, 2)


@pytest.mark.parametrize("lens", [None, *LENSES])
def test_projection_is_opencvs(lens):
    rng = np.random.default_rng(1)
    depth = rng.uniform(0.3, 80.0, 20_000)
    points = np.stack(
        [
            rng.uniform(-0.8, 0.8, depth.size) * depth,
            rng.uniform(-0.6, 0.6, depth.size) * depth,
            depth,
        ]
    )
    model = CameraModel.from_camera_info(
        info(MODELS.get(lens, lens or ""), LENSES.get(lens, ())), SIZE
    )
    expected = opencv(points, lens)
    pixel = np.rint(expected)
    inside = ((pixel >= 0) & (pixel < SIZE)).all(axis=1)

    indices, found = model.project(points)

    # On a border between two pixels the last bit decides.
    near_border = np.abs(expected - np.floor(expected) - 0.5).min(axis=1) < 1e-9
    assert set(np.flatnonzero(inside & ~near_border)) <= set(indices)
    assert set(indices) <= set(np.flatnonzero(inside | near_border))
    sure = ~near_border[indices]
    assert np.array_equal(
        found[sure], (pixel[indices, 1] * SIZE[0] + pixel[indices, 0]).astype(int)[sure]
    )
    assert len(indices) > 5_000


@pytest.mark.parametrize("lens", LENSES)
def test_no_point_from_beside_the_camera_gets_into_the_picture(lens):
    """A distortion polynomial turns back: far outside, OpenCV's projection lands inside again."""
    model = CameraModel.from_camera_info(info(MODELS.get(lens, lens), LENSES[lens]), SIZE)
    corner = np.array([[0.0, 0.0], [63.0, 0.0], [0.0, 47.0], [63.0, 47.0]]).reshape(-1, 1, 2)
    matrix, d = np.array(K).reshape(3, 3), np.array(LENSES[lens])
    undistort = cv2.fisheye.undistortPoints if lens == "equidistant" else cv2.undistortPoints
    widest = np.linalg.norm(undistort(corner, matrix, d).reshape(-1, 2), axis=1).max()
    angles = np.linspace(0.0, 2.0 * np.pi, 73)
    for tangent in np.geomspace(widest * 1.5, 60.0, 40):
        ring = np.stack([np.cos(angles) * tangent, np.sin(angles) * tangent, np.ones_like(angles)])

        assert model.project(ring * 7.0)[0].size == 0, tangent


def test_a_fisheye_sees_behind_itself():
    d = [0.0, 0.0, 0.0, 1e-9]
    model = CameraModel.from_camera_info(
        info("equidistant", d, k=[10.0, 0.0, 31.5, 0.0, 10.0, 23.5, 0.0, 0.0, 1.0]), SIZE
    )
    angle = np.deg2rad(100.0)

    indices, pixels = model.project(np.array([[np.sin(angle)], [0.0], [np.cos(angle)]]))

    assert indices.tolist() == [0]
    assert pixels.tolist() == [24 * 64 + round(31.5 + 10.0 * angle)]


def test_a_pinhole_sees_nothing_behind_itself():
    model = CameraModel.from_camera_info(info(), SIZE)
    points = np.array([[0.0, 0.0, 0.1, 0.0], [0.0, 0.0, 0.0, 0.1], [-1.0, 0.0, -3.0, 1e-9]])

    assert model.project(points)[0].size == 0


def test_points_that_are_none_fall_nowhere():
    nan, inf = np.nan, np.inf
    points = np.array(
        [[nan, 0.0, 0.0, inf, -inf], [0.0, nan, 0.0, 0.0, 0.0], [1.0, 1.0, nan, inf, 1.0]]
    )
    for lens, d in [("", []), *LENSES.items()]:
        model = CameraModel.from_camera_info(info(MODELS.get(lens, lens), d), SIZE)

        assert model.project(points)[0].size == 0
        assert model.project(points.astype(np.float32))[0].size == 0


def test_another_size_of_the_picture_is_the_same_view():
    whole = CameraModel.from_camera_info(info(), SIZE)
    half = CameraModel.from_camera_info(info(), (32, 24))
    rng = np.random.default_rng(2)
    points = np.stack([rng.uniform(-3, 3, 500), rng.uniform(-2, 2, 500), rng.uniform(4, 9, 500)])
    seen, pixels = whole.project(points)
    seen_half, pixels_half = half.project(points)

    assert np.array_equal(seen, seen_half)
    rows, columns = np.divmod(pixels, 64)
    rows_half, columns_half = np.divmod(pixels_half, 32)
    assert np.array_equal(rows // 2, rows_half)
    assert np.array_equal(columns // 2, columns_half)


def test_region_and_binning_of_the_camera_are_the_pictures():
    """A 64 x 48 picture that is the lower right quarter of the sensor, two pixels by two."""
    region = RegionOfInterest(x_offset=128, y_offset=96, width=128, height=96)
    k = [100.0, 0.0, 191.5, 0.0, 104.0, 143.5, 0.0, 0.0, 1.0]
    sensor = info(size=(256, 192), k=k, roi=region, binning_x=2, binning_y=2)
    model = CameraModel.from_camera_info(sensor, SIZE)

    assert model.projection[0, :3] == pytest.approx([50.0, 0.0, 31.5])
    assert model.projection[1, :3] == pytest.approx([0.0, 52.0, 23.5])


def test_a_rectified_picture_is_described_by_p_and_r():
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    p = [40.0, 0.0, 30.0, -40.0 * 0.5, 0.0, 40.0, 20.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    raw = info("plumb_bob", LENSES["plumb_bob"], p=p, r=turn.ravel())
    model = CameraModel.from_camera_info(raw, SIZE, rectified=True)
    point = np.array([[0.2], [-0.4], [2.0]])
    x, y, z = turn @ point[:, 0]

    indices, pixels = model.project(point)

    column, row = round(40.0 * x / z + 30.0 - 20.0 / z), round(40.0 * y / z + 20.0)
    assert indices.tolist() == [0]
    assert pixels.tolist() == [row * 64 + column]


@pytest.mark.parametrize(
    ("changes", "reason", "text"),
    [
        ({"k": [0.0] * 9}, "uncalibrated", "calibrate the camera"),
        ({"k": [np.nan, *K[1:]]}, "uncalibrated", "K of the CameraInfo"),
        ({"k": [-50.0, *K[1:]]}, "uncalibrated", "accepted: positive"),
        ({"model": "plumb_bob", "d": [0.1, 0.2, 0.3]}, "unknown_distortion", "plumb_bob (4 or 5"),
        ({"model": "kannala", "d": [0.1] * 5}, "unknown_distortion", "'kannala'"),
        ({"model": "equidistant", "d": [np.inf] * 4}, "unknown_distortion", "inf"),
        ({"model": "rational_polynomial", "d": [0.1] * 14}, "unknown_distortion", "(8 or 12)"),
    ],
)
def test_what_cannot_be_projected_with_is_named(changes, reason, text):
    with pytest.raises(CloudError) as caught:
        CameraModel.from_camera_info(info(**changes), SIZE)

    assert caught.value.reason == reason
    assert text in str(caught.value)


def test_an_unknown_model_without_distortion_is_taken():
    assert CameraModel.from_camera_info(info("", ()), SIZE).model == ""
    assert CameraModel.from_camera_info(info("none", [0.0] * 5), SIZE).model == ""


# --- painting ---------------------------------------------------------------------------------


@given(
    row=st.integers(0, SIZE[1] - 1),
    column=st.integers(0, SIZE[0] - 1),
    du=st.floats(-0.49, 0.49),
    dv=st.floats(-0.49, 0.49),
    depth=st.floats(0.05, 500.0),
)
@settings(max_examples=300)
def test_a_point_on_a_pixel_gets_what_the_pixel_shows(row, column, du, dv, depth):
    shown = pictures()
    model = CameraModel.from_camera_info(info(), SIZE)
    x, y = (column + du - K[2]) / K[0] * depth, (row + dv - K[5]) / K[4] * depth

    painted = paint(np.array([[x], [y], [depth]]), model, shown)

    red, green, blue = (int(value) for value in shown.color[row, column])
    assert painted.class_id[0] == shown.mask[row, column]
    assert painted.confidence[0] == pytest.approx(shown.confidence[row, column] / 255.0)
    assert painted.rgb[0] == red << 16 | green << 8 | blue
    assert painted.seen[0]


@given(
    points=arrays.arrays(
        np.float32,
        st.tuples(st.just(3), st.integers(0, 40)),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
    ),
    lens=st.sampled_from(["", *LENSES]),
    gap=st.integers(0, 70),
)
@example(np.zeros((3, 4), np.float32), "equidistant", 3)
@settings(max_examples=300, deadline=None)
def test_any_numbers_are_painted_without_a_word(points, lens, gap):
    """Whatever a scanner sends: no warning, no exception, and the unseen stay unknown."""
    model = CameraModel.from_camera_info(info(MODELS.get(lens, lens), LENSES.get(lens, ())), SIZE)
    occlusion = Occlusion(gap, 0.1) if gap else None

    with np.errstate(all="raise", under="ignore"):
        painted = paint(points, model, pictures(), occlusion)

    assert painted.seen.shape == painted.class_id.shape == painted.rgb.shape == points.shape[1:]
    assert painted.class_id.dtype == np.uint8
    assert painted.confidence.dtype == np.float32
    assert not painted.seen[~np.isfinite(points).all(axis=0)].any()
    assert (painted.class_id[~painted.seen] == 255).all()
    assert not painted.confidence[~painted.seen].any()
    assert not painted.rgb[~painted.seen].any()


@given(st.data())
@settings(deadline=None)
def test_the_order_of_the_points_does_not_matter(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    points = rng.uniform(-5.0, 5.0, (3, 200))
    order = np.array(data.draw(st.permutations(range(200))))
    model = CameraModel.from_camera_info(info("plumb_bob", LENSES["plumb_bob"]), SIZE)

    one = paint(points, model, pictures(), Occlusion(8, 0.2))
    other = paint(points[:, order], model, pictures(), Occlusion(8, 0.2))

    assert np.array_equal(one.class_id[order], other.class_id)
    assert np.array_equal(one.seen[order], other.seen)


def test_without_a_color_picture_points_are_black():
    plain = Pictures(np.full((48, 64), 3, np.uint8), np.full((48, 64), 255, np.uint8))

    painted = paint(
        np.array([[0.0], [0.0], [2.0]]), CameraModel.from_camera_info(info(), SIZE), plain
    )

    assert (painted.class_id[0], painted.confidence[0], painted.rgb[0]) == (3, 1.0, 0)


def surface(depth, columns, rows, every):
    """Points of a flat surface, one every few pixels."""
    column, row = np.meshgrid(np.arange(*columns, every), np.arange(*rows, every))
    x, y = (column.ravel() - K[2]) / K[0], (row.ravel() - K[5]) / K[4]
    return np.stack([x * depth, y * depth, np.full(x.size, depth)])


@pytest.mark.parametrize(("every", "gap"), [(1, 1), (3, 3), (4, 6), (6, 6)])
def test_a_surface_hides_what_is_behind_it_and_nothing_beside_it(every, gap):
    model = CameraModel.from_camera_info(info(), SIZE)
    near, far = surface(4.0, (12, 40), (12, 36), every), surface(10.0, (1, 64), (1, 48), every)
    points = np.concatenate([near, far], axis=1)

    assert paint(points, model, pictures()).seen.all()
    painted = paint(points, model, pictures(), Occlusion(gap, 0.1))

    indices, pixels = model.project(points)
    rows, columns = np.divmod(pixels[np.argsort(indices)][near.shape[1] :], SIZE[0])
    last = np.array([12 + (28 - 1) // every * every, 12 + (24 - 1) // every * every])
    behind = (columns >= 12) & (columns <= last[0]) & (rows >= 12) & (rows <= last[1])
    assert painted.seen[: near.shape[1]].all()
    assert np.array_equal(painted.seen[near.shape[1] :], ~behind)
    assert (painted.class_id[~painted.seen] == 255).all()


def test_a_gap_wider_than_said_is_seen_through():
    model = CameraModel.from_camera_info(info(), SIZE)
    near, far = surface(4.0, (12, 40), (12, 36), 6), surface(10.0, (15, 40), (15, 36), 6)

    painted = paint(np.concatenate([near, far], axis=1), model, pictures(), Occlusion(3, 0.1))

    assert painted.seen.all()


def test_a_road_that_recedes_hides_no_part_of_itself():
    model = CameraModel.from_camera_info(info(), SIZE)
    row, column = np.mgrid[26:48, 0:64:2]
    depth = 1.5 * K[4] / (row - K[5])
    points = np.stack([(column - K[2]) / K[0] * depth, np.full(depth.shape, 1.5), depth])

    assert paint(points.reshape(3, -1), model, pictures(), Occlusion(10, 0.05)).seen.all()


@given(
    distances=st.lists(st.floats(0.1, 100.0), min_size=1, max_size=60),
    gap=st.integers(1, 9),
    tolerance=st.floats(0.0, 0.9),
    seed=st.integers(0, 999),
)
@settings(deadline=None)
def test_the_nearest_is_in_front_and_a_shared_pixel_shows_the_nearer(
    distances, gap, tolerance, seed
):
    width, height = 13, 7
    pixels = np.random.default_rng(seed).integers(0, width * height, len(distances))
    depths = np.array(distances)

    front = in_front(pixels, depths, (width, height), Occlusion(gap, tolerance))

    assert front[depths.argmin()]
    for pixel, depth, seen in zip(pixels, depths, front, strict=True):
        nearest = depths[pixels == pixel].min()
        if depth * (1.0 - tolerance) > nearest * 1.001:
            assert not seen


def test_pictures_of_different_sizes_are_refused():
    mask = np.zeros((4, 6), np.uint8)
    with pytest.raises(ValueError, match="accepted: pictures of one size"):
        Pictures(mask, np.zeros((4, 5), np.uint8))
    with pytest.raises(ValueError, match="accepted: pictures of one size"):
        Pictures(mask, mask, np.zeros((6, 4, 3), np.uint8))
    model = CameraModel.from_camera_info(info(), SIZE)
    with pytest.raises(ValueError, match="pictures of 6 x 4; accepted: the camera's"):
        paint(np.zeros((3, 1)), model, Pictures(mask, mask))
