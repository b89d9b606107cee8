"""All streams of `magicfuse fuse` in one file, for Foxglove (MCAP) or the Rerun viewer (.rrd)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from magicfuse_ros.commands.fuse_files import OutputError
from magicfuse_ros.messages import one_line
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.runtime.contract import UInt8
from magicfuse_ros.sources.frame import Frame
from magicfuse_ros.whole_files import check_writable, whole_file

STREAMS = {
    "input": "/image",
    "enhanced": "/fuse_node/enhanced",
    "magimg": "/fuse_node/magimg",
    "infrared": "/fuse_node/infrared",
    "mask": "/fuse_node/semantic/mask",
    "confidence": "/fuse_node/semantic/confidence",
    "color": "/fuse_node/semantic/color",
}
"""What is logged, and its topic: the node's own, so that what shows a node also shows the file."""

_LABELS = "/fuse_node/semantic/labels"
_START_NS = 10**9  # a stamp of 0 means that there is none
_QUALITY = 90

OUTPUT_STREAMS = tuple(name for name in STREAMS if name != "input")

WriteFrame = Callable[[int, Mapping[str, UInt8]], None]
"""Takes the time of a frame in nanoseconds, and its pictures by the names of `STREAMS`."""

WriteResult = Callable[[Frame, Mapping[str, Callable[[], UInt8]]], None]
"""Takes a frame, and what makes its pictures by the names of `OUTPUT_STREAMS`."""

OpenLog = Callable[[Path, LabelSet], AbstractContextManager[WriteFrame]]


def check_logs(logs: Mapping[str, Path], *, overwrite: bool) -> None:
    """Check what can be checked before the model is loaded; `logs` are files by a key of `LOGS`.

    Raises OutputError if a name has another ending, a file exists, its folder cannot be written to,
    or a library is not installed.
    """
    for kind, path in logs.items():
        suffix, needed, _ = LOGS[kind]
        if path.suffix.lower() != suffix:
            raise OutputError(f"--{kind} {path}: accepted is a name that ends in {suffix}")
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists; give another --{kind}, or --overwrite to replace it")
        for module, extra in needed.items():
            if importlib.util.find_spec(module) is None:
                install = f"pip install 'magicfuse_ros[{extra}]'"
                raise OutputError(f"--{kind}: {module} is not installed; run: {install}")
        try:
            check_writable(path.parent)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {one_line(error)}") from error


@contextmanager
def open_logs(logs: Mapping[str, Path], labels: LabelSet) -> Iterator[WriteResult]:
    """Open logs that `check_logs` accepted; each has its name when it is whole.

    A log that Ctrl-C ended is whole; one that an error ended is removed.

    Raises OutputError if a file cannot be written.
    """
    with ExitStack() as opened:
        writers = [
            opened.enter_context(_open(path, LOGS[kind][2], labels)) for kind, path in logs.items()
        ]

        def write(frame: Frame, makers: Mapping[str, Callable[[], UInt8]]) -> None:
            if writers and frame.rgb is not None:
                pictures = {"input": frame.rgb, **{name: make() for name, make in makers.items()}}
                for each in writers:
                    each(frame.time_ns, pictures)

        yield write


@contextmanager
def _open(path: Path, open_log: OpenLog, labels: LabelSet) -> Iterator[WriteFrame]:
    stop: KeyboardInterrupt | None = None
    try:
        with whole_file(path) as partial, open_log(partial, labels) as write:
            try:
                yield write
            except KeyboardInterrupt as stopped:
                stop = stopped
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {one_line(error)}") from error
    if stop is not None:
        raise stop


@contextmanager
def _mcap(path: Path, labels: LabelSet) -> Iterator[WriteFrame]:
    from rclpy.serialization import serialize_message
    from rclpy.time import Time
    from std_msgs.msg import Header, String

    from magicfuse_ros.bags.reader import BagError, Topic
    from magicfuse_ros.bags.writer import BagWriter
    from magicfuse_ros.ros.cdr import serialize_image
    from magicfuse_ros.ros.outputs import labels_as_json

    def write(time_ns: int, pictures: Mapping[str, UInt8]) -> None:
        stamp_ns = _START_NS + time_ns
        header = Header(stamp=Time(nanoseconds=stamp_ns).to_msg(), frame_id="camera")
        for name, topic in STREAMS.items():
            encoding = "mono8" if pictures[name].ndim == 2 else "rgb8"
            bag.write(topic, stamp_ns, serialize_image(pictures[name], encoding, header))

    try:
        with TemporaryDirectory(prefix=".mcap", dir=path.parent) as folder:
            with BagWriter(Path(folder) / "log", "mcap") as bag:
                bag.add_topic(Topic(_LABELS, "std_msgs/msg/String", durability="transient_local"))
                names = labels_as_json(labels.names(), np.arange(256, dtype=np.uint8))
                bag.write(_LABELS, _START_NS, serialize_message(String(data=names)))
                for topic in STREAMS.values():
                    bag.add_topic(Topic(topic, "sensor_msgs/msg/Image"))
                yield write
            (file,) = bag.path.glob("*.mcap")
            file.replace(path)
    except BagError as error:
        raise OSError(str(error)) from error


@contextmanager
def _rerun(path: Path, labels: LabelSet) -> Iterator[WriteFrame]:
    import rerun as rr
    from rerun import blueprint

    views = (blueprint.Spatial2DView(name=name, origin=topic) for name, topic in STREAMS.items())
    recording = rr.RecordingStream("magicfuse", recording_id=path.stem)
    recording.save(path, default_blueprint=blueprint.Blueprint(blueprint.Grid(*views)))
    classes = [(number, each.name, each.color) for number, each in enumerate(labels.labels)]
    recording.log("/", rr.AnnotationContext(classes), static=True)

    def write(time_ns: int, pictures: Mapping[str, UInt8]) -> None:
        recording.set_time("time", duration=time_ns / 1e9)
        for name, topic in STREAMS.items():
            picture = pictures[name]
            exact = {"mask": rr.SegmentationImage, "confidence": rr.Image}.get(name)
            shown = exact(picture) if exact else rr.Image(picture).compress(jpeg_quality=_QUALITY)
            recording.log(topic, shown)

    try:
        yield write
    finally:
        recording.disconnect()


LOGS: Mapping[str, tuple[str, Mapping[str, str], OpenLog]] = {
    "mcap": (".mcap", {"rosbags": "bag", "rclpy": "ros"}, _mcap),
    "rerun": (".rrd", {"rerun": "rerun"}, _rerun),
}
"""By the option's name: the file's ending, the modules that it needs with their extra, and it."""
