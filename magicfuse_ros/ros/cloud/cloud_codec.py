"""Reads the points of a PointCloud2 of any layout, and makes the same cloud with paint added.

Strided NumPy views read fields at any offset, padded points and rows, both byte orders, and FLOAT32
and FLOAT64 coordinates. sensor_msgs_py can do this too, but is not installed everywhere. Nothing is
allocated before the message's own size is checked.
"""

from __future__ import annotations

import array
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import PointCloud2, PointField

from magicfuse_ros.ros.byte_data import why_unreadable
from magicfuse_ros.ros.cloud.cloud_errors import CloudError
from magicfuse_ros.ros.cloud.painting import Painted

Floats = NDArray[np.floating[Any]]

_FLOATS = {PointField.FLOAT32: "f4", PointField.FLOAT64: "f8"}
_SIZES = {
    PointField.INT8: 1,
    PointField.UINT8: 1,
    PointField.INT16: 2,
    PointField.UINT16: 2,
    PointField.INT32: 4,
    PointField.UINT32: 4,
    PointField.FLOAT32: 4,
    PointField.FLOAT64: 8,
}
_PAINT = (
    ("confidence", PointField.FLOAT32, "f4"),
    # As PCL and RViz expect it: the bytes of 0x00RRGGBB, declared as a float.
    ("rgb", PointField.FLOAT32, "u4"),
    ("class_id", PointField.UINT8, "u1"),
)
_PAINT_BYTES = 12  # with padding, so that the points stay aligned
_REPLACED = {"class_id", "confidence", "rgb", "rgba"}
MAX_POINTS = 1 << 24
"""Most points of a cloud that is accepted."""
MAX_STEP = 1 << 12
"""Largest point that is accepted, in bytes."""
MAX_FIELDS = 256
"""Most fields of a point."""


def read_points(cloud: Any) -> Floats:
    """Read the coordinates of a sensor_msgs/PointCloud2 with the fields x, y and z.

    They are (3, height x width), row by row; float64 if any coordinate is, else float32. It raises
    `CloudError` if the data do not fit their layout, are too large, or hold no coordinates.
    """
    bytes_, places = _points_as_bytes(cloud), _coordinates(cloud)
    kind = np.result_type(*(each for _, each in places)).newbyteorder("=")
    points = np.empty((3, *bytes_.shape[:2]), kind)
    if points.size:
        for column, (place, stored) in zip(points, places, strict=True):
            column[...] = bytes_[..., place].view(stored)[..., 0]
    return points.reshape(3, -1)


def painted_cloud(cloud: Any, painted: Painted, *, keep_unseen: bool) -> PointCloud2:
    """Add class_id, confidence and rgb to a cloud; its own fields and header stay.

    Parameters
    ----------
    cloud
        sensor_msgs/PointCloud2 that `read_points` accepted; it is not changed. In the result, its
        fields of the same names, and rgba, are replaced.
    painted
        One entry for each of its points.
    keep_unseen
        Whether points that the camera does not see are kept, with class 255. Otherwise they are
        left out. An organised cloud (height over 1) has to keep its shape, so there their x, y and
        z become NaN instead.

    Returns
    -------
    sensor_msgs/PointCloud2 with class_id UINT8, confidence FLOAT32 from 0 to 1, and rgb as PCL
    packs it. Its byte order is the input's; rows are not padded.
    """
    height, width, step = (bytes_ := _points_as_bytes(cloud)).shape
    order = ">" if cloud.is_bigendian else "<"
    start = -(-step // 4) * 4
    out = np.zeros((height, width, start + _PAINT_BYTES), np.uint8)
    out[..., :step] = bytes_
    out = out.reshape(height * width, start + _PAINT_BYTES)
    fields = [field for field in cloud.fields if field.name not in _REPLACED]
    offset = start
    values: tuple[NDArray[Any], ...] = (painted.confidence, painted.rgb, painted.class_id)
    for (name, datatype, kind), column in zip(_PAINT, values, strict=True):
        size = _SIZES[datatype]
        out[:, offset : offset + size] = (
            column.astype(f"{order}{kind}").view(np.uint8).reshape(-1, size)
        )
        fields.append(PointField(name=name, offset=offset, datatype=datatype, count=1))
        offset += size
    dense = bool(cloud.is_dense)
    if not keep_unseen and height == 1:
        out = out[painted.seen]
        width = len(out)
    elif not keep_unseen and out.size:  # the fields of an empty cloud may lie anywhere
        dense = dense and bool(painted.seen.all())
        for place, stored in _coordinates(cloud):
            out[~painted.seen, place] = np.array([np.nan], stored).view(np.uint8)
    result = PointCloud2(header=cloud.header, height=height, width=width, fields=fields)
    result.is_bigendian, result.is_dense = bool(cloud.is_bigendian), dense
    result.point_step = start + _PAINT_BYTES
    result.row_step = result.point_step * width
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(out).data.cast("B") if out.size else b"")
    result.data = data
    return result


def _points_as_bytes(cloud: Any) -> NDArray[np.uint8]:
    """Return a (height, width, point_step) view of the data."""
    height, width, step, row = cloud.height, cloud.width, cloud.point_step, cloud.row_step
    if height * width > MAX_POINTS:
        raise CloudError(
            "too_large", f"{width} x {height} points; accepted: up to {MAX_POINTS}; thin the cloud"
        )
    if step > MAX_STEP:
        raise CloudError(
            "bad_layout", f"points of {step} bytes; accepted: up to {MAX_STEP}; drop some fields"
        )
    if len(cloud.fields) > MAX_FIELDS:
        raise CloudError(
            "bad_layout",
            f"points of {len(cloud.fields)} fields; accepted: up to {MAX_FIELDS}; drop some",
        )
    if height * width == 0:
        return np.zeros((height, width, step), np.uint8)
    if height == 1:
        row = width * step  # several drivers leave row_step at 0
    for field in cloud.fields:
        size = _SIZES.get(field.datatype, 0) * max(field.count, 1)
        if size == 0 or field.offset + size > step:
            raise CloudError(
                "bad_layout",
                f"field {field.name[:60]!r}: datatype {field.datatype}, offset {field.offset}, in "
                f"points of {step} bytes; accepted: a PointField datatype, inside the point",
            )
    if row < width * step:
        raise CloudError(
            "bad_layout",
            f"rows of {row} bytes for {width} points of {step} bytes; accepted: {width * step} and "
            "more",
        )
    _check_data(cloud, row * (height - 1) + width * step)
    view: NDArray[np.uint8] = np.ndarray(
        (height, width, step), np.uint8, cloud.data, 0, (row, step, 1)
    )
    return view


def _check_data(cloud: Any, needed: int) -> None:
    unreadable = why_unreadable(cloud.data)
    if unreadable:
        raise CloudError("unreadable_data", unreadable)
    if len(cloud.data) < needed:
        raise CloudError(
            "short_data",
            f"{len(cloud.data)} bytes for {cloud.width} x {cloud.height} points; accepted: "
            f"{needed} and more",
        )


def _coordinates(cloud: Any) -> list[tuple[slice, np.dtype[Any]]]:
    """Return in which bytes of a point x, y and z lie, and their types."""
    places = []
    for name in ("x", "y", "z"):
        named = [field for field in cloud.fields if field.name == name]
        if len(named) != 1 or named[0].datatype not in _FLOATS or named[0].count > 1:
            names = ", ".join(given.name[:60] for given in cloud.fields[:20]) or "none"
            raise CloudError(
                "no_coordinates",
                f"no single FLOAT32 or FLOAT64 field {name!r}; the fields are: {names}; accepted: "
                "x, y and z",
            )
        kind = np.dtype(_FLOATS[named[0].datatype]).newbyteorder(">" if cloud.is_bigendian else "<")
        start = named[0].offset
        places.append((slice(start, start + kind.itemsize), kind))
    return places
