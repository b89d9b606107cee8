"""The pose of the cloud's sensor in the camera's frame, from a parameter or from tf2."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.time import Time

from magicfuse_ros.ros.cloud.cloud_errors import CloudError

try:
    import tf2_ros
except ImportError:  # not on PyPI; ROS installations have it in ros-<distro>-tf2-ros-py
    tf2_ros = None

Floats = NDArray[np.floating[Any]]

_JUMP_NS = 1_000_000_000
"""A cloud this much older than the newest one means that a recording has started again."""


@dataclass(frozen=True, eq=False)
class RigidTransform:
    """Moves points into the camera's optical frame.

    `rotation` is (3, 3) float64; `translation` is (3,) float64, in metres.
    """

    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]

    @classmethod
    def identity(cls) -> RigidTransform:
        """Return the transform that moves nothing."""
        return cls(np.eye(3), np.zeros(3))

    @classmethod
    def parse(cls, text: str) -> RigidTransform:
        """Read `'x y z roll pitch yaw'`: the pose of the cloud's frame in the camera's.

        The numbers are those that `static_transform_publisher` takes with the camera's optical
        frame as the parent: metres, and radians about the fixed axes x, then y, then z. A text that
        is not six finite numbers, separated by spaces or commas, raises `ValueError`.
        """
        words = [word for word in re.split(r"[\s,]+", text.strip().strip("[]").strip()) if word]
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            numbers = []
        if len(numbers) != 6 or not all(math.isfinite(number) for number in numbers):
            raise ValueError(
                f"{text!r}; accepted: six numbers, 'x y z roll pitch yaw' in metres and radians, "
                "the pose of the cloud's frame in the camera's optical frame"
            )
        x, y, z, roll, pitch, yaw = numbers
        about_x, about_y, about_z = (
            cv2.Rodrigues(axis * angle)[0]
            for axis, angle in zip(np.eye(3), (roll, pitch, yaw), strict=True)
        )
        return cls(about_z @ about_y @ about_x, np.array([x, y, z]))

    @classmethod
    def from_message(cls, transform: Any) -> RigidTransform:
        """Read a geometry_msgs/Transform.

        It raises `CloudError` (`no_transform`) if its quaternion is no rotation: its length is 0 or
        not finite.
        """
        q, t = transform.rotation, transform.translation
        axis = np.array([q.x, q.y, q.z], np.float64)
        sine = float(np.linalg.norm(axis))
        if not 1e-6 < math.hypot(sine, q.w) < 1e6:
            raise CloudError(
                "no_transform",
                f"the transform's quaternion is ({q.x:g}, {q.y:g}, {q.z:g}, {q.w:g})",
            )
        if sine > 0.0:
            axis *= 2.0 * math.atan2(sine, q.w) / sine
        rotation = np.asarray(cv2.Rodrigues(axis)[0], np.float64)
        return cls(rotation, np.array([t.x, t.y, t.z], np.float64))

    def apply(self, points: Floats) -> Floats:
        """Move (3, N) points in metres; the result has the same shape and type."""
        rotation = self.rotation.astype(points.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            moved: Floats = rotation @ points + self.translation.astype(points.dtype)[:, None]
        return moved


class Extrinsics:
    """Finds the transform for a cloud; it is made when the node is activated, and closed after.

    It listens to /tf and /tf_static, where tf2_ros is installed.
    """

    def __init__(self, node: Node) -> None:
        self._buffer: Any = None
        self._listener: Any = None
        self._newest_ns = 0
        if tf2_ros is not None:
            # Made without the node: with it, it would add a service that nothing ever removes.
            self._buffer = tf2_ros.Buffer()
            self._listener = tf2_ros.TransformListener(self._buffer, node, spin_thread=False)

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.unregister()
        self._listener = self._buffer = None

    def find(
        self, camera_frame: str, cloud_frame: str, stamp: Any, fixed: RigidTransform | None
    ) -> RigidTransform:
        """Return the transform from the cloud's frame to the camera's at `stamp`, the cloud's.

        `fixed`, the parameter `extrinsic`, wins over tf. It raises `CloudError` (`no_transform`) if
        tf does not know the transform, or is not installed.
        """
        if fixed is not None:
            return fixed
        if cloud_frame == camera_frame:
            return RigidTransform.identity()
        if self._buffer is None:
            raise CloudError(
                "no_transform",
                f"the cloud is in frame {cloud_frame!r}, the camera in {camera_frame!r}, and "
                "tf2_ros is not installed: set `extrinsic`, or install ros-<distro>-tf2-ros-py",
            )
        at = Time.from_msg(stamp)
        if at.nanoseconds < self._newest_ns - _JUMP_NS:
            # Its transforms would be newer than all that come now, and it would ignore these.
            self._buffer.clear()
            self._newest_ns = 0
        self._newest_ns = max(self._newest_ns, at.nanoseconds)
        try:
            found = self._buffer.lookup_transform(camera_frame, cloud_frame, at)
        except tf2_ros.TransformException as error:
            raise CloudError(
                "no_transform",
                f"tf has no transform from {cloud_frame!r} to {camera_frame!r} at the cloud's "
                f"stamp ({' '.join(str(error).split())}): publish one, or set `extrinsic`",
            ) from error
        return RigidTransform.from_message(found.transform)
