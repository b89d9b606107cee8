"""`CameraModel` from a CameraInfo whose every number is the fuzzer's, and points through it."""

from __future__ import annotations

import numpy as np
from fuzz.fields import Fields
from sensor_msgs.msg import CameraInfo

from magicfuse_ros.ros.cloud.camera_model import MODELS, CameraModel
from magicfuse_ros.ros.cloud.cloud_errors import CloudError

MAX_LEN = 512


def check(data: bytes) -> None:
    fields = Fields(data)
    size = 1 + fields.byte(), 1 + fields.byte()
    rectified = fields.flag()
    info = CameraInfo(height=fields.number(), width=fields.number())
    info.binning_x, info.binning_y = fields.number(), fields.number()
    for name in ("x_offset", "y_offset", "height", "width"):
        setattr(info.roi, name, fields.number())
    info.distortion_model = fields.choice([*MODELS, "", fields.text()])
    for name, count in (("k", 9), ("r", 9), ("p", 12)):
        setattr(info, name, np.array([real(fields) for _ in range(count)]))
    info.d = [real(fields) for _ in range(fields.choice((0, 4, 5, 8, 12, 14)))]
    dtype = fields.choice(("f4", "f8"))
    with np.errstate(all="ignore"):
        points = np.array([[real(fields) for _ in range(8)] for _ in range(3)]).astype(dtype)
    try:
        camera = CameraModel.from_camera_info(info, size, rectified=rectified)
    except CloudError as error:
        assert error.reason in {"uncalibrated", "unknown_distortion"}
        assert len(str(error)) < 1000
        return
    indices, pixels = camera.project(points)
    assert indices.shape == pixels.shape
    assert (np.diff(indices) > 0).all()
    assert np.isin(indices, range(8)).all()
    assert ((pixels >= 0) & (pixels < size[0] * size[1])).all()
    assert np.isfinite(points[:, indices]).all()


def real(fields: Fields) -> float:
    """Mostly an ordinary number, now and then any double."""
    first = fields.byte()
    return fields.unpack("<d") if first >= 240 else (first - 100) / 8
