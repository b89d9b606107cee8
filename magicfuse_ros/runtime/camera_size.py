"""Pictures and masks at the camera's size, from what R found at the model's resolution.

Every picture is gain·frame + offset, with coefficients that are enlarged: so it is as sharp as the
frame, costs a millisecond, and needs no other code for another camera.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from magicfuse_ros.model.refiner import (
    Coefficients,
    enhanced,
    exposed,
    infrared,
    lifted,
    split_maps,
)
from magicfuse_ros.runtime.contract import UInt8
from magicfuse_ros.runtime.letterbox import Letterbox, resize


class CameraPictures:
    """The pictures of one frame.

    Parameters
    ----------
    frame
        (H, W, 3) uint8 RGB as it came.
    maps
        What R found, (1, 7, h, w), for the whole of `letterbox.padded`.
    image
        What they were found in: the frame as the model's input, (1, 3, h, w) in [0, 1].
    letterbox
        How the frame lies in the model's input.
    """

    def __init__(self, frame: UInt8, maps: Tensor, image: Tensor, letterbox: Letterbox) -> None:
        self._frame, self._size = frame, letterbox.camera
        height, width = letterbox.content
        found = split_maps(maps[..., :height, :width].float())
        self._maps = exposed(found, image[..., :height, :width].float())

    def magimg(self) -> UInt8:
        """Return the restored picture with light where there is heat, (H, W, 3) uint8 RGB."""
        return self._of(self._frame, lifted(self._maps))

    def enhanced(self) -> UInt8:
        """Return the restored picture, (H, W, 3) uint8 RGB."""
        return self._of(self._frame, enhanced(self._maps))

    def infrared(self) -> UInt8:
        """Return the imagined infrared, (H, W) uint8."""
        grey = np.asarray(cv2.cvtColor(self._frame, cv2.COLOR_RGB2GRAY), np.uint8)
        return self._of(grey, infrared(self._maps))

    def _of(self, picture: UInt8, coefficients: Coefficients) -> UInt8:
        shape = (1,) if picture.ndim == 2 else (1, 3)
        gain = self._enlarged(coefficients.gain, repeat=shape[-1])
        offset = self._enlarged(coefficients.offset * 255.0)
        scaled = cv2.multiply(picture, gain, dtype=cv2.CV_32F)
        # Rounded and limited to 0 to 255 as it is added.
        return np.asarray(cv2.add(scaled, offset, dtype=cv2.CV_8U), np.uint8)

    def _enlarged(self, planes: Tensor, repeat: int = 1) -> NDArray[np.float32]:
        """Bring (1, C, h, w) to the camera's size as (H, W, C), or (H, W) where C is 1."""
        channels_last = planes[0].expand(max(repeat, planes.shape[1]), -1, -1).permute(1, 2, 0)
        array: NDArray[np.float32] = np.ascontiguousarray(channels_last.cpu().numpy())
        array = array[..., 0] if array.shape[2] == 1 else array
        return np.asarray(resize(array, self._size, smooth=True), np.float32)
