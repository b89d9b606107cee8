"""What the node publishes beside its pictures: camera_info, the coloured mask, label_info."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, RegionOfInterest

from magicfuse_ros.model.labels import UNKNOWN

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # not on PyPI; ROS installations have it in ros-<distro>-vision-msgs
    LabelInfo = VisionClass = None

LABEL_INFO: Any = LabelInfo
"""The message class; None where vision_msgs is not installed."""

NO_LABEL_INFO = (
    ""
    if LabelInfo is not None
    else "vision_msgs is not installed: ids and names are published on ~/semantic/labels only, and "
    "not as LabelInfo, which Nav2 wants (in ROS it is ros-$ROS_DISTRO-vision-msgs)"
)
"""What the node logs once if there is no LabelInfo; empty if there is."""


def scale_camera_info(info: CameraInfo, size: tuple[int, int]) -> CameraInfo:
    """Describe a picture of `size` (width, height) that shows the camera's whole picture.

    `info` describes the sensor; the camera's picture is its region of interest, binned. If `size`
    is the size of that picture, the result equals `info`. Otherwise region and binning are folded
    into K and P together with the scale, and the result describes a plain picture of `size`. (0, 0)
    is the centre of the first pixel, as in ROS and OpenCV, so that a principal point c becomes
    (c + 0.5) s - 0.5.

    The result is a new sensor_msgs/CameraInfo with the input's header, distortion and
    rectification. An uncalibrated matrix (with a focal length of 0) is not changed; neither K nor P
    is if the input has no size.
    """
    roi = info.roi
    binning = (max(info.binning_x, 1), max(info.binning_y, 1))
    region = (roi.width or info.width, roi.height or info.height)
    if (region[0] // binning[0], region[1] // binning[1]) == size:
        return copy.deepcopy(info)
    return plain_camera_info(info, size)


def plain_camera_info(info: CameraInfo, size: tuple[int, int]) -> CameraInfo:
    """Describe a plain picture of `size`, even where it is the camera's own.

    Parameters and result are those of `scale_camera_info`, but region of interest and binning are
    always folded into K and P, which therefore go with the picture's own pixels.
    """
    result = copy.deepcopy(info)
    roi = info.roi
    region = (roi.width or info.width, roi.height or info.height)
    result.width, result.height = size
    result.binning_x = result.binning_y = 0
    result.roi = RegionOfInterest(do_rectify=roi.do_rectify)
    if 0 in region:
        return result
    for axis, offset in enumerate((roi.x_offset, roi.y_offset)):
        scale = size[axis] / region[axis]
        # Rows 0 and 1: focal length, skew, principal point and, in P, -f x baseline.
        for matrix in (result.k.reshape(3, 3), result.p.reshape(3, 4)):
            if matrix[axis, axis] != 0.0:
                matrix[axis] *= scale
                matrix[axis, 2] += 0.5 * scale - 0.5 - offset * scale
    return result


def class_map(names: Sequence[str], table: NDArray[np.uint8]) -> list[tuple[int, str]]:
    """List the classes of the published mask: pairs of published id and name, in order of ids.

    `names` are the label set's, in the order of their ids, and `table` is (256,) uint8, the
    published id of each (`IdMap.table`). A class that is published as unknown (255) is left out,
    because LabelInfo reserves the largest id for "unlabeled".
    """
    published = ((int(table[index]), name) for index, name in enumerate(names))
    return sorted(pair for pair in published if pair[0] != UNKNOWN)


def labels_as_json(names: Sequence[str], table: NDArray[np.uint8]) -> str:
    """Write the `class_map` without any message package: ``[{"id": 6, "name": "person"}, ...]``."""
    return json.dumps([{"id": index, "name": name} for index, name in class_map(names, table)])


def label_info(names: Sequence[str], table: NDArray[np.uint8]) -> Any:
    """Build the vision_msgs/LabelInfo of the `class_map`, unstamped; None without vision_msgs."""
    if LabelInfo is None:
        return None
    classes = [
        VisionClass(class_id=index, class_name=name) for index, name in class_map(names, table)
    ]
    return LabelInfo(class_map=classes)
