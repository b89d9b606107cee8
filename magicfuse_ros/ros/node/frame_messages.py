"""The messages that a fused frame becomes, on the node's topics and in bags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from magicfuse_ros.ros.cdr import serialize_image
from magicfuse_ros.ros.images.codec import encode_compressed, encode_runs
from magicfuse_ros.ros.outputs import scale_camera_info
from magicfuse_ros.runtime.class_colors import colorize
from magicfuse_ros.runtime.contract import FuseResult

RUN_LENGTH = "semantic/mask/run_length"
OUTPUTS: Mapping[str, type[Any]] = {
    "magimg": Image,
    "magimg/compressed": CompressedImage,
    "semantic/mask": Image,
    RUN_LENGTH: Image,
    "semantic/confidence": Image,
    "semantic/color": Image,
    "infrared": Image,
    "enhanced": Image,
    "camera_info": CameraInfo,
}
"""The node's topics that have a message for each frame, below the node's name, and their types."""


@dataclass(frozen=True, kw_only=True)
class FusedFrame:
    """A fused frame, and what is needed to make its messages.

    Attributes
    ----------
    result
        The engine's result. Its mask holds the label set's ids.
    header
        Stamp and frame_id of the input, which every message carries.
    mask
        (H, W) uint8 in published ids.
    palette
        (R, G, B) of each label.
    jpeg_quality
        1 to 100.
    camera_info
        The camera's newest CameraInfo, or None.
    """

    result: FuseResult
    header: Header
    mask: NDArray[np.uint8]
    palette: Sequence[tuple[int, int, int]]
    jpeg_quality: int
    camera_info: CameraInfo | None

    def message(self, output: str) -> Any:
        """Make the message of one of `OUTPUTS`: an Image serialised, the others as objects.

        It is None for a picture that the engine was not asked for, and for `camera_info` if the
        camera has none.
        """
        result, header = self.result, self.header
        if output == "camera_info":
            return self._scaled_camera_info()
        if output == "magimg/compressed":
            return encode_compressed(result.magimg, header, self.jpeg_quality)
        if output == RUN_LENGTH:
            return encode_runs(self.mask, header)
        if output == "semantic/color":
            colored = colorize(result.mask, result.magimg, self.palette)
            return serialize_image(colored, "rgb8", header)
        picture, encoding = {
            "magimg": (result.magimg, "rgb8"),
            "semantic/mask": (self.mask, "mono8"),
            "semantic/confidence": (result.confidence, "mono8"),
            "infrared": (result.infrared, "mono8"),
            "enhanced": (result.enhanced, "rgb8"),
        }[output]
        return None if picture is None else serialize_image(picture, encoding, header)

    def _scaled_camera_info(self) -> CameraInfo | None:
        if self.camera_info is None:
            return None
        height, width = self.result.mask.shape
        info = scale_camera_info(self.camera_info, (width, height))
        info.header = self.header
        return info
