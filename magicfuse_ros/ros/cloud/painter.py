"""Paints a cloud with a frame and publishes it; counts whatever goes wrong by its reason."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from magicfuse_ros.ros import dds, ledger
from magicfuse_ros.ros.cdr import serialize_image
from magicfuse_ros.ros.cloud.camera_model import CameraModel
from magicfuse_ros.ros.cloud.cloud_codec import painted_cloud, read_points
from magicfuse_ros.ros.cloud.cloud_errors import CloudError
from magicfuse_ros.ros.cloud.cloud_parameters import CloudSettings
from magicfuse_ros.ros.cloud.extrinsics import Extrinsics
from magicfuse_ros.ros.cloud.matching import Pair
from magicfuse_ros.ros.cloud.painting import Painted, Pictures, paint
from magicfuse_ros.ros.images.codec import decode_image
from magicfuse_ros.ros.ledger import Ledger, Throttle
from magicfuse_ros.ros.node_input import Arrival
from magicfuse_ros.ros.qos import LATCHED_QOS, OUTPUT_QOS
from magicfuse_ros.ros.statistics import Timings, age_ms, since_ms
from magicfuse_ros.sources.picture_errors import PictureError


class CloudPainter:
    """Paints clouds and publishes them. It owns the publishers, from configure to cleanup.

    The values in force are replaced (`self.settings = ...`) between two clouds.
    """

    def __init__(
        self, node: Node, settings: CloudSettings, *, account: Ledger, timings: Timings
    ) -> None:
        self.settings = settings
        self._node, self._account, self._timings = node, account, timings
        self._throttle = Throttle()
        self._points = node.create_publisher(PointCloud2, "~/points", OUTPUT_QOS)
        self._mask = node.create_publisher(Image, "~/mask", OUTPUT_QOS)
        self._confidence = node.create_publisher(Image, "~/confidence", OUTPUT_QOS)
        self._label_info: Publisher[Any] | None = None
        self._labels: Any = None
        self._camera: tuple[Any, CameraModel] | None = None

    def process(
        self, pair: Pair, camera_info: CameraInfo, label_info: Any, extrinsics: Extrinsics
    ) -> None:
        """Paint and publish one cloud; this never raises.

        `pair` holds an `Arrival` and Images, `camera_info` describes the camera's whole picture,
        and `label_info` is a vision_msgs/LabelInfo, or None.
        """
        cloud: Arrival = pair.cloud
        times = {"wait": since_ms(cloud.received_at)}
        try:
            started = time.monotonic()
            points, pictures = read_points(cloud.message), _pictures(pair.parts)
            times["decode"] = since_ms(started)
            started = time.monotonic()
            painted = self._paint(pair, points, pictures, camera_info, extrinsics)
            times["paint"] = since_ms(started)
            started = time.monotonic()
            self._publish(cloud.message, painted, label_info)
            times["publish"] = since_ms(started)
        except (CloudError, PictureError) as error:
            self._drop(error.reason, str(error))
            return
        except Exception as error:  # noqa: BLE001 - one cloud that nobody thought of must not stop it
            causes = f"{type(error).__name__}: {error}", dds.shared_memory_warning()
            self._drop(ledger.PUBLISH_ERROR, "; ".join(filter(None, causes)))
            return
        self._account.published()
        times["total"] = since_ms(cloud.received_at)
        now_ns = self._node.get_clock().now().nanoseconds
        self._timings.add(times, age_ms(pair.cloud_ns, cloud.clock_ns, now_ns))

    def destroy(self) -> None:
        """Destroy the publishers."""
        publishers: list[Publisher[Any]] = [self._points, self._mask, self._confidence]
        if self._label_info is not None:
            publishers.append(self._label_info)
        for publisher in publishers:
            self._node.destroy_publisher(publisher)

    def _paint(
        self,
        pair: Pair,
        points: NDArray[np.floating[Any]],
        pictures: Pictures,
        camera_info: CameraInfo,
        extrinsics: Extrinsics,
    ) -> Painted:
        settings, header = self.settings, pair.cloud.message.header
        transform = extrinsics.find(
            pair.parts["mask"].header.frame_id, header.frame_id, header.stamp, settings.extrinsic
        )
        height, width = pictures.mask.shape
        camera = self._camera_model(camera_info, (width, height), rectified=settings.rectified)
        return paint(transform.apply(points), camera, pictures, settings.occlusion)

    def _camera_model(
        self, info: CameraInfo, size: tuple[int, int], *, rectified: bool
    ) -> CameraModel:
        roi, model = info.roi, info.distortion_model
        numbers = tuple(bytes(values) for values in (info.d, info.k, info.r, info.p))
        region = (roi.x_offset, roi.y_offset, roi.width, roi.height)
        sensor = (info.width, info.height, info.binning_x, info.binning_y)
        key = (size, rectified, model, numbers, region, sensor)
        if self._camera is None or self._camera[0] != key:
            self._camera = key, CameraModel.from_camera_info(info, size, rectified=rectified)
        return self._camera[1]

    def _publish(self, cloud: PointCloud2, painted: Painted, label_info: Any) -> None:
        keep = self.settings.keep_unseen
        message = painted_cloud(cloud, painted, keep_unseen=keep)
        # Nav2 wants a picture with one pixel for each point, with the cloud's stamp.
        shape = message.height, message.width
        kept = slice(None) if keep or message.height > 1 else painted.seen
        for publisher, values in (
            (self._mask, painted.class_id),
            (self._confidence, np.rint(painted.confidence * 255.0).astype(np.uint8)),
        ):
            if publisher.get_subscription_count() > 0 and 0 not in shape:
                mask = values[kept].reshape(shape)
                publisher.publish(serialize_image(mask, "mono8", cloud.header))
        self._publish_labels(label_info, cloud.header)
        self._points.publish(message)

    def _publish_labels(self, label_info: Any, header: Any) -> None:
        """Publish fuse_node's LabelInfo once, with the stamp of the first cloud that it is for."""
        if label_info is None or label_info is self._labels:
            return
        if self._label_info is None:
            self._label_info = self._node.create_publisher(
                type(label_info), "~/label_info", LATCHED_QOS
            )
        self._labels = label_info
        stamped = type(label_info)(
            header=header, class_map=label_info.class_map, threshold=label_info.threshold
        )
        self._label_info.publish(stamped)

    def _drop(self, reason: str, text: str) -> None:
        count = self._account.drop(reason)
        if self._throttle.allows(reason):
            text = " ".join(text.split())[:500]
            self._node.get_logger().warning(f"Cloud dropped, {reason} ({count} so far): {text}")


def _pictures(parts: dict[str, Any]) -> Pictures:
    for name in ("mask", "confidence"):
        if parts[name].encoding not in ("mono8", "8UC1"):
            raise CloudError(
                "bad_mask",
                f"the encoding of {name} is {parts[name].encoding!r}; accepted: mono8; remap it to "
                f"fuse_node's ~/semantic/{name}",
            )
    color = decode_image(parts["color"]) if "color" in parts else None
    # Grey is decoded to three equal channels.
    mask, confidence = (decode_image(parts[name])[:, :, 0] for name in ("mask", "confidence"))
    return Pictures(mask, confidence, color)
