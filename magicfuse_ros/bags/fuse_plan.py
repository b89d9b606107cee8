"""What `bag fuse` is asked to do: the options, the cameras of a bag, and the identity of both.

Only what changes a result belongs to the identity, so that a run may go on from another folder or
another machine with the same weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magicfuse_ros import __version__
from magicfuse_ros.bags.image_topics import (
    COMPRESSED_TYPE,
    IMAGE_TYPE,
    describe_topic,
    image_topics,
)
from magicfuse_ros.bags.reader import BagError, BagReader, Topic
from magicfuse_ros.bags.suffixes import SUFFIXES
from magicfuse_ros.bags.writer import STORAGES
from magicfuse_ros.hashing import file_hash
from magicfuse_ros.resources import model_path
from magicfuse_ros.ros.graph import type_name
from magicfuse_ros.ros.images.bit_depth import BitDepth
from magicfuse_ros.ros.node import frame_messages
from magicfuse_ros.ros.node.frame_messages import RUN_LENGTH
from magicfuse_ros.ros.node.id_map import IdMap
from magicfuse_ros.ros.node.parameters import SPECS
from magicfuse_ros.runtime.contract import EngineSettings

CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
NODE_NAME = "fuse_node"

OUTPUTS: Mapping[str, str] = {
    name: type_name(kind) for name, kind in frame_messages.OUTPUTS.items() if name != RUN_LENGTH
}
"""The node's topics that can be made, and their types."""
DEFAULT_OUTPUTS = (
    "magimg",
    "magimg/compressed",
    "semantic/mask",
    "semantic/confidence",
    "camera_info",
)

_DISTANCES = ("16UC1", "32FC1")
"""Encodings of depth cameras, which are fused only if the user names their topic."""

_MESSAGES = (*SUFFIXES, ".zstd")
"""Suffixes of files with messages; the last is that of compressed ones."""

Identity = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class FuseOptions:
    """How to fuse a bag; a value that is not accepted raises `ValueError`.

    Attributes
    ----------
    engine
        Model, device and how to sample. A `parallel` of ``auto`` becomes ``off``, because ``auto``
        depends on the number of cores: a run resumed with fewer would give other last bits.
    topics
        Image topics to fuse; None takes every camera of the bag.
    outputs
        Which of `OUTPUTS` to make.
    storage
        ``mcap`` or ``sqlite3``; None takes the input's.
    with_input
        Whether to copy the image messages that are fused, so that input and results are in one bag.
    input_bits, jpeg_quality, id_map, min_confidence
        The node's parameters `input_bits`, `jpeg_quality`, `semantic.id_map` and
        `semantic.min_confidence`.
    """

    engine: EngineSettings
    topics: tuple[str, ...] | None = None
    outputs: tuple[str, ...] = DEFAULT_OUTPUTS
    storage: str | None = None
    with_input: bool = False
    input_bits: int = SPECS["input_bits"].default  # type: ignore[assignment]
    jpeg_quality: int = SPECS["jpeg_quality"].default  # type: ignore[assignment]
    id_map: str = SPECS["semantic.id_map"].default  # type: ignore[assignment]
    min_confidence: float = SPECS["semantic.min_confidence"].default  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.engine.parallel == "auto":
            engine = dataclasses.replace(self.engine, parallel="off")
            object.__setattr__(self, "engine", engine)
        BitDepth(self.input_bits)
        SPECS["jpeg_quality"].check(self.jpeg_quality)
        SPECS["semantic.min_confidence"].check(self.min_confidence)
        IdMap.parse(self.id_map)
        if self.engine.temporal is not None:
            raise ValueError(
                f"temporal is {self.engine.temporal}; accepted: None, since in a bag each frame is "
                "fused by itself"
            )
        unknown = [name for name in self.outputs if name not in OUTPUTS]
        if unknown or not self.outputs:
            raise ValueError(
                f"outputs are {', '.join(unknown) or 'none'}; accepted: {', '.join(OUTPUTS)}"
            )
        if self.storage is not None and self.storage not in STORAGES:
            raise ValueError(f"storage {self.storage!r}: accepted are {', '.join(STORAGES)}")


@dataclass(frozen=True)
class Camera:
    """One image topic to fuse.

    `info_topic` is where its CameraInfo is; None if the bag has none. `node` is the full name of
    the node under which the outputs are named: ``/front/fuse_node``.
    """

    topic: Topic
    info_topic: str | None
    node: str


@dataclass(frozen=True)
class Plan:
    """What there is to do with one bag.

    Attributes
    ----------
    cameras, frames
        The cameras to fuse, by topic name, and the number of their image messages.
    left_out
        (name, type) of the topics that are not copied: the cameras, unless the input is wanted
        with the results, and topics of an earlier fusion that have the names of the outputs.
    notes
        Sentences that the user should read.
    identity
        Everything that the result depends on, by name.
    """

    cameras: Mapping[str, Camera]
    frames: int
    left_out: frozenset[tuple[str, str]]
    notes: tuple[str, ...]
    identity: Identity

    @classmethod
    def of(cls, bag: BagReader, options: FuseOptions) -> Plan:
        """Choose the cameras and name their outputs.

        It raises `BagError` if the bag has no such topic, or no picture to fuse.
        """
        if options.topics is None:
            chosen, notes = _found(bag)
        else:
            chosen, notes = [bag.topic(name) for name in dict.fromkeys(options.topics)], []
            for topic in chosen:
                if topic.type not in (IMAGE_TYPE, COMPRESSED_TYPE):
                    raise BagError(f"topic {topic.name} of {bag.path} holds {topic.type}, no image")
        infos = {topic.name for topic in bag.topics if topic.type == CAMERA_INFO_TYPE}
        nodes = node_names(chosen)
        cameras = {
            topic.name: Camera(topic, _info_topic(topic, infos), nodes[topic.name])
            for topic in chosen
        }
        made = {f"{camera.node}/{name}" for camera in cameras.values() for name in OUTPUTS}
        old = sorted({topic.name for topic in bag.topics if topic.name in made} - set(cameras))
        if old:
            notes.append(f"left out, because they are made anew: {', '.join(old)}")
        images = {(topic.name, topic.type) for topic in chosen}
        remade = {(topic.name, topic.type) for topic in bag.topics if topic.name in made}
        return cls(
            cameras,
            sum(topic.count for topic in bag.topics if (topic.name, topic.type) in images),
            frozenset(remade if options.with_input else remade | images),
            tuple(notes),
            _identity(bag, options, list(cameras)),
        )


def node_names(topics: Sequence[Topic]) -> dict[str, str]:
    """Name the node of each camera as if one ran in the camera's namespace.

    ``/front/image_raw`` becomes ``/front/fuse_node``, ``/image`` becomes ``/fuse_node``, and a
    topic whose own name is the camera's, ``/left``, becomes ``/left/fuse_node``. Cameras that would
    get the same name keep the whole name of their topic: ``/front/image_raw/fuse_node``.
    """
    whole = {topic.name: topic.name for topic in topics}
    bases = {topic.name: _base(topic) for topic in topics}
    spaces = {name: _namespace(base) for name, base in bases.items()}
    names: dict[str, str] = {}
    for name in whole:
        for candidates in (spaces, bases, whole):
            names[name] = candidates[name]
            if Counter(candidates.values())[candidates[name]] == 1:
                break
    if len(set(names.values())) < len(names):
        names = whole
    return {name: f"{space}/{NODE_NAME}" for name, space in names.items()}


def differences(begun: Identity, wanted: Identity) -> list[str]:
    """List the entries of `wanted` that differ from those in `begun`, each as text."""
    return [
        f"{name} was {_short(begun.get(name))} and is now {_short(value)}"
        for name, value in wanted.items()
        if begun.get(name) != value
    ]


def _found(bag: BagReader) -> tuple[list[Topic], list[str]]:
    """Return the image topics that look like a camera's, and a note on each of the others."""
    chosen: dict[str, Topic] = {}
    notes = []
    for topic in image_topics(bag):  # raw ones first
        what = ""
        with suppress(BagError):  # its messages are reported when they are read
            what = describe_topic(bag, topic)
        base = _base(topic)
        if f"/{NODE_NAME}/" in topic.name:
            reason = "an earlier fusion made it"
        elif what.endswith(_DISTANCES) or "compresseddepth" in what.lower():
            reason = f"{what} is what depth cameras send"
        elif base in chosen and chosen[base].name != topic.name:
            reason = f"{chosen[base].name} shows the same"
        else:
            chosen.setdefault(base, topic)
            continue
        notes.append(f"{topic.name} is copied, not fused: {reason}; --topics would choose it")
    if not chosen:
        names = ", ".join(topic.name for topic in bag.topics) or "none"
        raise BagError(f"bag {bag.path} has no camera to fuse; its topics: {names}")
    return sorted(chosen.values(), key=lambda topic: topic.name), notes


def _base(topic: Topic) -> str:
    """Return the name that a raw and a compressed topic of one camera share."""
    is_compressed = topic.type == COMPRESSED_TYPE
    return topic.name.removesuffix("/compressed") if is_compressed else topic.name


def _namespace(base: str) -> str:
    parent, _, last = base.rpartition("/")
    return parent if last.startswith("image") else base


def _info_topic(topic: Topic, infos: set[str]) -> str | None:
    """Return the CameraInfo topic beside an image topic, as image_transport looks for it."""
    name = f"{_base(topic).rpartition('/')[0]}/camera_info"
    return name if name in infos else None


def _identity(bag: BagReader, options: FuseOptions, cameras: list[str]) -> Identity:
    engine = dataclasses.asdict(options.engine)
    folder = model_path(options.engine.model)
    identity = {
        "magicfuse_ros": __version__,
        "input": {
            "storage": bag.storage,
            "files": _sizes(bag.path),
            "messages": bag.message_count,
            "from_to_ns": [bag.start_ns, bag.end_ns],
            "topics": [[topic.name, topic.type, topic.count] for topic in bag.topics],
        },
        **engine,
        "model": f"{folder.resolve().name} {_weights_digest(folder)}",
        "labels": _labels_digest(options.engine.labels),
        "topics": cameras,
        "with_input": options.with_input,
        "outputs": [name for name in OUTPUTS if name in options.outputs],
        "storage": options.storage or bag.storage,
        "input_bits": options.input_bits,
        "jpeg_quality": options.jpeg_quality,
        "id_map": options.id_map,
        "min_confidence": options.min_confidence,
    }
    # In the form in which it is read back: tuples are lists in JSON.
    loaded: Identity = json.loads(json.dumps(identity))
    return loaded


def _sizes(path: Path) -> list[int]:
    """Return the sizes of a bag's files with messages; other files in its folder do not count."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    return [file.stat().st_size for file in files if file.suffix in _MESSAGES]


def _labels_digest(labels: str | None) -> str | None:
    """Return the name of a label set; if it is a file, with the hash of its content."""
    path = Path(labels or "")
    return f"{path.name} {file_hash(path)[:16]}" if path.is_file() else labels


def _weights_digest(folder: Path) -> str:
    """Return a digest of a model's files, even of a missing folder, which loading reports."""
    files = sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors"))
    hashes = "".join(f"{file.name} {file_hash(file)}\n" for file in files)
    return hashlib.blake2b(hashes.encode(), digest_size=8).hexdigest()


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
