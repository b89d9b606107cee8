"""Fuses one image message of a bag into the messages that the node would publish."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from magicfuse_ros.bags.fuse_plan import OUTPUTS, Camera, FuseOptions
from magicfuse_ros.bags.image_topics import COMPRESSED_TYPE
from magicfuse_ros.bags.reader import BagMessage, BagReader
from magicfuse_ros.bags.writer import canonical
from magicfuse_ros.ros import ledger
from magicfuse_ros.ros.cdr import deserialize
from magicfuse_ros.ros.images.bit_depth import BitDepth
from magicfuse_ros.ros.images.codec import decode
from magicfuse_ros.ros.node.frame_messages import FusedFrame
from magicfuse_ros.ros.node.id_map import IdMap, remap
from magicfuse_ros.runtime.contract import EXTRAS, FuseResult
from magicfuse_ros.runtime.engine_type import Engine
from magicfuse_ros.sources.picture_errors import PictureError


@dataclass(frozen=True)
class Fused:
    """What became of one image message.

    `outputs` are serialised messages by the output's name, such as ``semantic/mask``. If the frame
    was left out, there are none, and `reason` and `text` say why: for programs, and for people.
    """

    outputs: Mapping[str, bytes] = field(default_factory=dict)
    reason: str = ""
    text: str = ""


class CameraInfos:
    """The CameraInfo of each camera: the newest so far, or the bag's first before there is one."""

    def __init__(self, bag: BagReader, cameras: Mapping[str, Camera]) -> None:
        names = {camera.info_topic for camera in cameras.values()} - {None}
        firsts = ((name, next(bag.messages([name]), None)) for name in names if name is not None)
        self._newest = {name: first.data for name, first in firsts if first is not None}

    def hear(self, message: BagMessage) -> None:
        """Note a message of the bag if it is a camera's CameraInfo."""
        if message.topic.name in self._newest:
            self._newest[message.topic.name] = message.data

    def of(self, camera: Camera) -> CameraInfo | None:
        """Return a camera's CameraInfo; None if it has none, or one that cannot be read."""
        data = self._newest.get(camera.info_topic or "")
        try:
            return None if data is None else deserialize(data, CameraInfo)
        except ValueError:
            return None


class FrameFuser:
    """Fuses messages; the same message, CameraInfo, engine and options give the same result.

    The engine's sampling noise is the same for every frame, as in the node, so that a frame's
    result depends neither on its place in the bag nor on other frames. An id map that names a class
    which the model does not know raises `ValueError`.
    """

    def __init__(self, engine: Engine, options: FuseOptions) -> None:
        self._engine, self._options = engine, options
        self._table = IdMap.parse(options.id_map).table(engine.labels.names())
        self._extras = frozenset(EXTRAS) & frozenset(options.outputs)
        self._depths: dict[str, BitDepth] = defaultdict(lambda: BitDepth(options.input_bits))

    def fuse(self, message: BagMessage, info: CameraInfo | None) -> Fused:
        """Fuse one image message; if it cannot be fused, the result says why.

        Errors of the engine, other than that it refuses the frame, are raised.
        """
        is_compressed = message.topic.type == COMPRESSED_TYPE
        try:
            image = deserialize(message.data, CompressedImage if is_compressed else Image)
            frame = decode(image, self._depths[message.topic.name])
        except PictureError as error:
            return Fused(reason=error.reason, text=str(error))
        except Exception as error:  # noqa: BLE001 - a bag can hold what nobody thought of
            return Fused(reason=ledger.UNDECODABLE, text=f"{type(error).__name__}: {error}")
        try:
            result = self._engine.fuse(frame, self._extras)
        except ValueError as error:
            return Fused(reason=ledger.UNSUPPORTED, text=str(error))
        try:
            return Fused(self._messages(result, image.header, info))
        except ValueError as error:  # such as a side too long for JPEG
            return Fused(reason=ledger.PUBLISH_ERROR, text=str(error))

    @property
    def hints(self) -> dict[str, str]:
        """By topic name, a sentence on which option its pictures seem to need."""
        return {name: depth.hint() for name, depth in self._depths.items() if depth.hint()}

    def _messages(
        self, result: FuseResult, header: Header, info: CameraInfo | None
    ) -> dict[str, bytes]:
        """Return the wanted messages by output name, serialised."""
        options = self._options
        frame = FusedFrame(
            result=result,
            header=header,
            mask=remap(result.mask, result.confidence, self._table, options.min_confidence),
            palette=self._engine.labels.palette(),
            jpeg_quality=options.jpeg_quality,
            camera_info=info,
        )
        serialized = {}
        for name in OUTPUTS:
            message = frame.message(name) if name in options.outputs else None
            if isinstance(message, bytes):
                serialized[name] = message
            elif message is not None:
                serialized[name] = canonical(OUTPUTS[name], serialize_message(message))
        return serialized
