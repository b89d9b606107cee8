"""A street of flat surfaces with known classes: what a camera and a scanner see of it.

Coordinates are the camera's optical frame: x right, y down, z forward, in metres.
"""

import base64

import cv2
import numpy as np

ROAD, SIDEWALK, BUILDING, CAR, PERSON, POLE = 4, 5, 6, 1, 2, 10
NOTHING = 255
GROUND = 1.5
FAR = 60.0
BOXES = (  # class, smallest corner, largest corner
    (BUILDING, (-40.0, -12.0, 28.0), (40.0, GROUND, 29.0)),
    (BUILDING, (-14.0, -9.0, 2.0), (-9.0, GROUND, 28.0)),
    (CAR, (-4.2, 0.0, 8.0), (-2.4, GROUND, 12.0)),
    (CAR, (1.5, 0.1, 14.0), (3.3, GROUND, 18.0)),
    (PERSON, (1.0, -0.3, 6.0), (1.6, GROUND, 6.4)),
    (POLE, (-1.1, -4.0, 9.0), (-0.9, GROUND, 9.2)),
)


def cast(origin, directions):
    """Return how far each (N, 3) direction reaches, in its own lengths, and the class it meets."""
    origin = np.asarray(origin, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        down = (GROUND - origin[1]) / directions[:, 1]
        meets = origin[:, None] + down * directions.T
        reach = np.where(down > 0.0, down, np.inf)
        label = np.where(np.abs(meets[0]) > 5.0, SIDEWALK, ROAD)
        for kind, low, high in BOXES:
            entries = (np.array(low) - origin) / directions
            exits = (np.array(high) - origin) / directions
            first = np.nanmax(np.minimum(entries, exits), axis=1)
            last = np.nanmin(np.maximum(entries, exits), axis=1)
            hit = (first <= last) & (first > 0.0) & (first < reach)
            reach[hit], label[hit] = first[hit], kind
    nothing = ~(reach * np.linalg.norm(directions, axis=1) < FAR)
    return np.where(nothing, np.inf, reach), np.where(nothing, NOTHING, label).astype(np.uint8)


def rays(size, matrix, model, d):
    """Return the (N, 3) direction of every pixel of a camera, found by OpenCV."""
    width, height = size
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    pixels = pixels.reshape(-1, 1, 2).astype(np.float64)
    if model == "equidistant":
        flat = cv2.fisheye.undistortPoints(pixels, matrix, np.array(d)).reshape(-1, 2)
    else:
        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-9)
        flat = cv2.undistortPoints(
            pixels, matrix, np.array(d) if len(d) else None, criteria=criteria
        ).reshape(-1, 2)
    return np.column_stack([flat, np.ones(len(flat))])


def scan(position, rings, columns):
    """Return the points of a turning scanner, (N, 3), and their classes; only rays that meet."""
    elevation = np.deg2rad(np.linspace(-25.0, 15.0, rings))[:, None]
    azimuth = np.linspace(-np.pi, np.pi, columns, endpoint=False)[None]
    directions = np.stack(
        [
            np.sin(azimuth) * np.cos(elevation),
            -np.sin(elevation) + 0.0 * azimuth,
            np.cos(azimuth) * np.cos(elevation),
        ],
        axis=-1,
    ).reshape(-1, 3)
    reach, label = cast(position, directions)
    met = np.isfinite(reach)
    return np.asarray(position) + directions[met] * reach[met, None], label[met]


def visible(points):
    """Whether nothing stands between the camera and each of the (N, 3) points."""
    reach, _ = cast((0.0, 0.0, 0.0), points)
    return reach > 1.0 - 1e-3


def seen(points, size, matrix, model, d):
    """Return which of the (N, 3) points fall into the picture, and which of them nothing hides.

    OpenCV says the former, the scene the latter.
    """
    zero = np.zeros(3)
    if model == "equidistant":
        pixels, _ = cv2.fisheye.projectPoints(points[:, None], zero, zero, matrix, np.array(d))
    else:
        pixels, _ = cv2.projectPoints(
            points[:, None], zero, zero, matrix, np.array(d) if len(d) else None
        )
    pixels = np.rint(pixels.reshape(-1, 2))
    # In front, and not so far aside that the lens's polynomial has turned back.
    ahead = (points[:, 2] > 0.0) & (np.hypot(points[:, 0], points[:, 1]) < 1.5 * points[:, 2])
    inside = ahead & ((pixels >= 0) & (pixels < size)).all(axis=1)
    return inside, inside & visible(points)


def cloud_fields(points, stamp_ns, frame_id, *, height=1):
    """Return the fields of a PointCloud2 of (N, 3) points, with an intensity."""
    count = len(points)
    data = np.zeros((count, 4), np.float32)
    data[:, :3], data[:, 3] = points, np.arange(count) % 251
    names = ("x", "y", "z", "intensity")
    return {
        "height": height,
        "width": count // height,
        "fields": [
            {"name": name, "offset": 4 * at, "datatype": 7, "count": 1}
            for at, name in enumerate(names)
        ],
        "point_step": 16,
        "row_step": 16 * count // height,
        "is_dense": True,
        "data": base64.b64encode(data.tobytes()).decode(),
        "stamp": [stamp_ns // 10**9, stamp_ns % 10**9],
        "frame_id": frame_id,
    }


def image_fields(picture, encoding, stamp_ns, frame_id):
    """Return the fields of an Image."""
    return {
        "height": picture.shape[0],
        "width": picture.shape[1],
        "encoding": encoding,
        "step": picture.strides[0],
        "data": base64.b64encode(np.ascontiguousarray(picture).tobytes()).decode(),
        "stamp": [stamp_ns // 10**9, stamp_ns % 10**9],
        "frame_id": frame_id,
    }


def structured(cloud):
    """The points as sensor_msgs_py returns them."""
    names = ["x", "y", "z", "class_id", "confidence"]
    kinds = {7: "<f4", 2: "u1"}
    fields = {field.name: field for field in cloud.fields}
    kind = np.dtype(
        {
            "names": names,
            "formats": [kinds[fields[name].datatype] for name in names],
            "offsets": [fields[name].offset for name in names],
            "itemsize": cloud.point_step,
        }
    )
    return np.frombuffer(cloud.data, kind)
