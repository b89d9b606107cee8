"""PointCloud2 of any layout in, the same with paint out."""

import array
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import PointCloud2, PointField
from support.foreign_buffer import Buffer

from magicfuse_ros.ros.cloud.cloud_codec import painted_cloud, read_points
from magicfuse_ros.ros.cloud.cloud_errors import CloudError
from magicfuse_ros.ros.cloud.painting import Painted

F32, F64, U8, U16, U32 = (
    PointField.FLOAT32,
    PointField.FLOAT64,
    PointField.UINT8,
    PointField.UINT16,
    PointField.UINT32,
)
KINDS = {F32: "f4", F64: "f8", U8: "u1", U16: "u2", U32: "u4"}


def build(columns, *, height=1, step=None, row_pad=0, big=False, dense=True):
    """A cloud of {name: (datatype, values)}, fields one after the other."""
    order = ">" if big else "<"
    names, offset, fields = [], 0, []
    for name, (datatype, _) in columns.items():
        kind = np.dtype(f"{order}{KINDS[datatype]}")
        names.append((name, kind, offset))
        fields.append(PointField(name=name, offset=offset, datatype=datatype, count=1))
        offset += kind.itemsize
    step = step or offset
    kind = np.dtype(
        {
            "names": [name for name, _, _ in names],
            "formats": [kind for _, kind, _ in names],
            "offsets": [offset for _, _, offset in names],
            "itemsize": step,
        }
    )
    count = len(next(iter(columns.values()))[1])
    points = np.zeros(count, kind)
    for name, (_, values) in columns.items():
        points[name] = values
    width = count // height
    rows = points.view(np.uint8).reshape(height, width * step)
    padded = np.full((height, width * step + row_pad), 0xEE, np.uint8)
    padded[:, : width * step] = rows
    cloud = PointCloud2(height=height, width=width, fields=fields, point_step=step)
    cloud.header.frame_id, cloud.header.stamp.sec = "lidar", 7
    cloud.row_step, cloud.is_bigendian, cloud.is_dense = width * step + row_pad, big, dense
    cloud.data = array.array("B", padded.tobytes())
    return cloud


def field(cloud, name):
    """Read one field of an unpadded cloud by the letter of the message."""
    found = next(entry for entry in cloud.fields if entry.name == name)
    kind = np.dtype(KINDS[found.datatype]).newbyteorder(">" if cloud.is_bigendian else "<")
    data = np.frombuffer(cloud.data, np.uint8).reshape(-1, cloud.point_step)
    part = np.ascontiguousarray(data[:, found.offset : found.offset + kind.itemsize])
    return part.view(kind).ravel()


def paint_of(count, seen=None):
    ids = np.arange(count, dtype=np.uint8)
    return Painted(
        ids,
        np.linspace(0.0, 1.0, count).astype(np.float32),
        np.arange(count, dtype=np.uint32) * 0x010203,
        np.ones(count, bool) if seen is None else np.array(seen),
    )


layouts = st.fixed_dictionaries(
    {
        "kind": st.sampled_from([F32, F64]),
        "big": st.booleans(),
        "rows": st.integers(1, 4),
        "columns": st.integers(1, 5),
        "padding": st.integers(0, 9),
        "row_pad": st.integers(0, 9),
        "shuffled": st.permutations(["x", "y", "z", "intensity", "ring"]),
    }
)


@given(layouts, st.integers(0, 1000))
@settings(deadline=None)
def test_coordinates_of_every_layout(layout, seed):
    count = layout["rows"] * layout["columns"]
    xyz = np.random.default_rng(seed).uniform(-50, 50, (3, count)).astype(np.float32)
    values = {
        **{name: (layout["kind"], xyz["xyz".index(name)]) for name in "xyz"},
        "intensity": (F32, np.arange(count)),
        "ring": (U16, np.arange(count) * 7),
    }
    columns = {name: values[name] for name in layout["shuffled"]}
    size = sum(np.dtype(KINDS[datatype]).itemsize for datatype, _ in columns.values())
    cloud = build(
        columns,
        height=layout["rows"],
        step=size + layout["padding"],
        row_pad=layout["row_pad"],
        big=layout["big"],
    )
    before = bytes(cloud.data)

    points = read_points(cloud)
    assert points.dtype == (np.float64 if layout["kind"] == F64 else np.float32)
    assert np.array_equal(points, xyz)

    out = painted_cloud(cloud, paint_of(count), keep_unseen=True)
    assert (out.height, out.width, out.is_bigendian) == (
        cloud.height,
        cloud.width,
        cloud.is_bigendian,
    )
    assert out.row_step == out.width * out.point_step
    assert len(out.data) == out.row_step * out.height
    assert np.array_equal(read_points(out), xyz)
    assert np.array_equal(field(out, "ring"), np.arange(count) * 7)
    assert np.array_equal(field(out, "class_id"), np.arange(count))
    assert np.array_equal(field(out, "confidence"), paint_of(count).confidence)
    assert np.array_equal(
        field(out, "rgb").view("u4" if not layout["big"] else ">u4"), paint_of(count).rgb
    )
    assert out.header == cloud.header
    assert bytes(cloud.data) == before


def xyz_cloud(count=6, **options):
    values = np.arange(count, dtype=np.float32)
    return build(dict.fromkeys("xyz", (F32, values)), **options)


def test_a_depth_cameras_own_colour_is_replaced():
    values = np.arange(4, dtype=np.float32)
    columns = dict.fromkeys("xyz", (F32, values)) | {"rgb": (F32, values), "ring": (U8, values)}

    out = painted_cloud(build(columns), paint_of(4), keep_unseen=True)

    assert [entry.name for entry in out.fields] == [
        *("x", "y", "z", "ring"),
        *("confidence", "rgb", "class_id"),
    ]
    assert np.array_equal(field(out, "rgb").view("<u4"), paint_of(4).rgb)


def test_unseen_points_of_a_flat_cloud_are_left_out():
    seen = [True, False, True, True, False, False]

    out = painted_cloud(xyz_cloud(), paint_of(6, seen), keep_unseen=False)

    assert (out.height, out.width, out.is_dense) == (1, 3, True)
    assert read_points(out)[0].tolist() == [0.0, 2.0, 3.0]
    assert field(out, "class_id").tolist() == [0, 2, 3]


@pytest.mark.parametrize("big", [False, True])
def test_unseen_points_of_an_organised_cloud_lose_their_coordinates(big):
    seen = [True, False, True, True, False, True]

    out = painted_cloud(xyz_cloud(height=2, big=big), paint_of(6, seen), keep_unseen=False)

    assert (out.height, out.width, out.is_dense) == (2, 3, False)
    assert np.isnan(read_points(out)).all(axis=0).tolist() == [not value for value in seen]
    assert read_points(out)[1, 3] == 3.0


def test_nothing_seen_and_nothing_there():
    assert painted_cloud(xyz_cloud(), paint_of(6, [False] * 6), keep_unseen=False).width == 0
    empty = xyz_cloud(0)

    assert read_points(empty).shape == (3, 0)
    out = painted_cloud(empty, paint_of(0), keep_unseen=True)
    assert (out.width, len(out.data), len(out.fields)) == (0, 0, 6)


def test_a_row_step_that_the_driver_left_at_zero():
    cloud = xyz_cloud()
    cloud.row_step = 0

    assert read_points(cloud)[2].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def changed(**fields):
    cloud = xyz_cloud(height=2)
    for name, value in fields.items():
        setattr(cloud, name, value)
    return cloud


def with_field(**entries):
    cloud = xyz_cloud()
    for name, value in entries.items():
        setattr(cloud.fields[2], name, value)
    return cloud


@pytest.mark.parametrize(
    ("cloud", "reason", "text"),
    [
        (changed(width=2**31, height=2**31), "too_large", "accepted: up to"),
        (changed(width=1000), "bad_layout", "accepted: 12000 and more"),
        (changed(row_step=35), "bad_layout", "rows of 35 bytes"),
        (changed(data=array.array("B", b"123")), "short_data", "3 bytes for 3 x 2 points"),
        (changed(point_step=0), "bad_layout", "points of 0 bytes"),
        (changed(point_step=2**32 - 1), "bad_layout", "accepted: up to 4096"),
        (changed(fields=[PointField()] * 257), "bad_layout", "257 fields; accepted: up to 256"),
        (with_field(name="depth"), "no_coordinates", "the fields are: x, y, depth"),
        (with_field(datatype=PointField.INT16), "no_coordinates", "'z'"),
        (with_field(name="x"), "no_coordinates", "no single FLOAT32 or FLOAT64 field 'x'"),
        (with_field(datatype=99), "bad_layout", "datatype 99"),
        (with_field(offset=9), "bad_layout", "offset 9"),
        (with_field(offset=2**32 - 1), "bad_layout", "inside the point"),
        (PointCloud2(height=1, width=1, point_step=12, data=bytes(12)), "no_coordinates", "none"),
    ],
)
def test_what_cannot_be_read_is_named(cloud, reason, text):
    with pytest.raises(CloudError) as caught:
        read_points(cloud)

    assert caught.value.reason == reason
    assert text in str(caught.value)


@given(
    st.builds(
        PointCloud2,
        height=st.integers(0, 2**32 - 1) | st.integers(0, 4),
        width=st.integers(0, 2**32 - 1) | st.integers(0, 4),
        point_step=st.integers(0, 2**32 - 1) | st.integers(0, 40),
        row_step=st.integers(0, 2**32 - 1) | st.integers(0, 160),
        is_bigendian=st.booleans(),
        data=st.binary(max_size=700).map(lambda data: array.array("B", data)),
        fields=st.lists(
            st.builds(
                PointField,
                name=st.sampled_from(["x", "y", "z", "rgb", ""]),
                offset=st.integers(0, 2**32 - 1) | st.integers(0, 30),
                datatype=st.integers(0, 255) | st.integers(7, 8),
                count=st.integers(0, 2**32 - 1) | st.integers(0, 2),
            ),
            max_size=6,
        ),
    )
)
@settings(max_examples=500, deadline=None)
def test_any_message_is_read_or_refused(cloud):
    try:
        points = read_points(cloud)
    except CloudError:
        return
    count = cloud.height * cloud.width
    assert points.shape == (3, count)
    painted = Painted(
        np.zeros(count, np.uint8),
        np.zeros(count, np.float32),
        np.zeros(count, np.uint32),
        np.ones(count, bool),
    )
    out = painted_cloud(cloud, painted, keep_unseen=False)
    assert np.array_equal(read_points(out), points, equal_nan=True)


def test_points_in_a_gpus_memory_are_refused():
    cloud = xyz_cloud()
    names = ("header", "height", "width", "fields", "is_bigendian", "point_step", "row_step")
    fields = {name: getattr(cloud, name) for name in names}
    with pytest.raises(CloudError, match="backend 'cuda', which NumPy cannot read") as caught:
        read_points(SimpleNamespace(**fields, data=Buffer(bytes(cloud.data))))
    assert caught.value.reason == "unreadable_data"


def test_sensor_msgs_py_reads_the_same():
    point_cloud2 = pytest.importorskip(
        "sensor_msgs_py.point_cloud2",
        reason="sensor_msgs_py is not installed (it is not on PyPI); source a ROS 2 to run",
    )
    out = painted_cloud(xyz_cloud(height=2), paint_of(6), keep_unseen=True)
    read = point_cloud2.read_points(out)

    assert read["class_id"].ravel().tolist() == list(range(6))
    assert read["z"].ravel().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
