"""`read_points` and `painted_cloud` on a PointCloud2 whose every field is the fuzzer's."""

from __future__ import annotations

import array
import struct

import numpy as np
from fuzz.fields import Fields
from sensor_msgs.msg import PointCloud2, PointField

from magicfuse_ros.ros.cloud.cloud_codec import MAX_POINTS, painted_cloud, read_points
from magicfuse_ros.ros.cloud.cloud_errors import CloudError
from magicfuse_ros.ros.cloud.painting import Painted

NAMES = ("x", "y", "z", "x", "y", "z", "rgb", "rgba", "class_id", "confidence", "ring", "")
REASONS = {"no_coordinates", "bad_layout", "short_data", "too_large"}
FLOATS = {PointField.FLOAT32: "f", PointField.FLOAT64: "d"}
MAX_FILLED = 1 << 14


def check(data: bytes) -> None:
    fields = Fields(data)
    cloud = cloud_of(fields)
    given = bytes(cloud.data)
    try:
        points = read_points(cloud)
    except CloudError as error:
        assert error.reason in REASONS
        assert len(str(error)) < 1000
        return
    count = cloud.height * cloud.width
    assert count <= MAX_POINTS
    assert points.shape == (3, count)
    assert np.array_equal(points, by_hand(cloud), equal_nan=True)
    seen = np.resize(np.frombuffer(given or b"\1", np.uint8), count) % 2 == 1
    painted = Painted(
        np.arange(count, dtype=np.uint8),
        np.linspace(0.0, 1.0, count, dtype=np.float32),
        np.arange(count, dtype=np.uint32),
        seen,
    )
    kept = painted_cloud(cloud, painted, keep_unseen=True)
    assert np.array_equal(read_points(kept), points, equal_nan=True)
    assert (kept.height, kept.width) == (cloud.height, cloud.width)
    assert len(kept.data) == kept.row_step * kept.height
    left = read_points(painted_cloud(cloud, painted, keep_unseen=False))
    if cloud.height == 1:
        assert np.array_equal(left, points[:, seen], equal_nan=True)
    else:
        assert np.array_equal(left[:, seen], points[:, seen], equal_nan=True)
        assert np.isnan(left[:, ~seen]).any(axis=0).all()  # not all: fields may overlap
    assert bytes(cloud.data) == given


def cloud_of(fields: Fields) -> PointCloud2:
    cloud = PointCloud2(height=fields.number(), width=fields.number(), point_step=fields.number())
    tight = cloud.point_step * cloud.width
    row = tight + fields.byte() if fields.flag() else fields.number()
    cloud.row_step = row % 2**32
    cloud.is_bigendian, cloud.is_dense, fill = fields.flag(), fields.flag(), fields.flag()
    cloud.fields = [
        PointField(
            name=fields.choice(NAMES),
            offset=fields.number(),
            datatype=fields.choice((7, 8, 7, 8, fields.byte())),
            count=fields.choice((1, 0, fields.number())),
        )
        for _ in range(fields.byte() % 8)
    ]
    data = fields.rest()
    needed = cloud.height * max(cloud.row_step, tight)
    if fill and data and needed <= MAX_FILLED:
        data *= -(-needed // len(data))
    cloud.data = array.array("B", data)
    return cloud


def by_hand(cloud: PointCloud2) -> np.ndarray:
    """The coordinates, one number at a time."""
    named = {field.name: field for field in cloud.fields}  # of two fields of a name, the last
    order, data = ">" if cloud.is_bigendian else "<", bytes(cloud.data)
    row_step = cloud.row_step if cloud.height > 1 else 0
    return np.array(
        [
            [
                struct.unpack_from(
                    order + FLOATS[named[name].datatype],
                    data,
                    row * row_step + column * cloud.point_step + named[name].offset,
                )[0]
                for row in range(cloud.height if cloud.width else 0)
                for column in range(cloud.width)
            ]
            for name in "xyz"
        ]
    ).reshape(3, -1)
