"""Bags to fuse, and what comes out of them."""

import os
import resource
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

import numpy as np
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header, String
from support import noop_bag_fuse
from support.messages import encode_image
from support.noop_node import REFUSE, NoopEngine

from magicfuse_ros import cli
from magicfuse_ros.bags.fuse_bag import fuse_bag
from magicfuse_ros.bags.fuse_engine import LazyEngine
from magicfuse_ros.bags.fuse_plan import DEFAULT_OUTPUTS, FuseOptions
from magicfuse_ros.bags.reader import BagReader, Topic
from magicfuse_ros.bags.writer import BagWriter, canonical
from magicfuse_ros.ros.images.codec import encode_compressed
from magicfuse_ros.runtime.contract import EngineSettings

ROOT = Path(__file__).parents[2]
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
START_NS = 1_700_000_000_123_456_789
FRAME_NS = 100_000_000
FRONT = [f"/front/fuse_node/{name}" for name in DEFAULT_OUTPUTS]
REAR = [f"/rear/fuse_node/{name}" for name in DEFAULT_OUTPUTS if name != "camera_info"]


def picture(index, width=32, height=24):
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 3 + index * 5, y * 4 + index, x + y + index * 9]
    return np.stack([channel % 200 for channel in channels], -1).astype(np.uint8)


def header(index, frame_id):
    made = Header(frame_id=frame_id)
    # Before it was received, as with every camera.
    made.stamp.sec, made.stamp.nanosec = divmod(START_NS + index * FRAME_NS - 7_000_000, 10**9)
    return made


def calibration(index):
    info = CameraInfo(header=header(index, "front_eye"), width=64, height=48)
    info.k[[0, 2, 4, 5]] = 50.0 + index // 5, 31.5, 50.0, 23.5
    info.p[[0, 2, 5, 6]] = 50.0 + index // 5, 31.5, 50.0, 23.5
    return info


def drive(path, storage="mcap", frames=10, spoil=lambda _topic, _index, data: data):
    """Two cameras, raw with CameraInfo and JPEG; depth, text, and a type nobody knows."""
    with BagWriter(path, storage) as bag:
        bag.add_topic(Topic("/front/image_raw", IMAGE, reliability="best_effort"))
        bag.add_topic(Topic("/front/camera_info", "sensor_msgs/msg/CameraInfo"))
        bag.add_topic(Topic("/rear/image_raw/compressed", COMPRESSED))
        bag.add_topic(Topic("/depth/image", IMAGE))
        bag.add_topic(Topic("/notes", "std_msgs/msg/String", durability="transient_local"))
        odd = bag._writer.add_connection(
            "/odd", "nobody/msg/Knows", msgdef="int32 x\n", rihs01=f"RIHS01_{7:064x}"
        )
        for index in range(frames):
            at = START_NS + index * FRAME_NS
            depth = Image(header=header(index, "tof"), height=2, width=2, encoding="32FC1", step=8)
            depth.data = bytes(16)
            front = encode_image(picture(index), "rgb8", header(index, "front_eye"))
            rear = encode_compressed(picture(index, 48, 20), header(index, "rear_eye"), 90)
            for name, message in (
                ("/front/image_raw", front),
                ("/front/camera_info", calibration(index)),  # after its image, at the same time
                ("/rear/image_raw/compressed", rear),
                ("/depth/image", depth),
                ("/notes", String(data=f"note {index}")),
            ):
                data = canonical(bag._connections[name].msgtype, serialize_message(message))
                bag.write(name, at, spoil(name, index, data))
            bag._writer.write(odd, at + 1, b"\x00\x01\x00\x00" + bytes([index % 256, 0, 0, 0]))
    return path


def contents(path):
    """Everything in a bag that a reader can see."""
    with BagReader(path) as bag:
        messages = [(each.topic, each.received_ns, each.data) for each in bag.messages()]
        definitions = {(each.topic, each.digest, each.msgdef) for each in bag.connections}
        return messages, definitions, bag.topics, bag.storage, dict(bag.notes)


def by_topic(path):
    found = {}
    for topic, received_ns, data in contents(path)[0]:
        found.setdefault(topic.name, []).append((received_ns, data))
    return found


def options(**changes):
    engine = {name: changes.pop(name) for name in ("steps", "seed", "model") if name in changes}
    return FuseOptions(engine=EngineSettings(**engine), **changes)


def fuse(source, target, chosen=None, factory=NoopEngine, stop=None, **told):
    chosen = chosen or options()
    stop = stop or threading.Event()
    engine = LazyEngine(chosen.engine, stop, lambda _text: None, factory)
    try:
        return fuse_bag(source, target, chosen, engine, stop=stop, **told)
    finally:
        engine.close()


def environment(**extra):
    path = os.pathsep.join([str(ROOT), str(ROOT / "test")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | extra


def begun(*arguments, output, errors, **variables):
    """Begin `magicfuse bag fuse` of noop_bag_fuse.py in a forked process; returns its id."""
    process = os.fork()
    if process:
        return process
    status = 99
    try:
        os.environ.update(variables)
        os.dup2(output.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        noop_bag_fuse.arm()
        status = cli.main(["bag", "fuse", *map(str, arguments)])
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - told as a process of its own would
        traceback.print_exc()
    finally:
        # Coverage's data is a file too.
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        os._exit(status)


def ended(process):
    """Wait for a process's exit status; a kill gives a negative one."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def command(*arguments, **variables):
    """Run `begun` to its end."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        status = ended(begun(*arguments, output=output, errors=errors, **variables))
        for file in (output, errors):
            file.seek(0)
        return subprocess.CompletedProcess(arguments, status, output.read(), errors.read())


def spoil(topic, index, data):
    """Frames 1, 3, 5 and 7 of the front camera and 2 of the rear one are no pictures."""
    if topic == "/rear/image_raw/compressed":
        jpeg = deserialize_message(data, CompressedImage)
        jpeg.data = jpeg.data[:30] if index == 2 else jpeg.data
        return serialize_message(jpeg)
    if topic != "/front/image_raw" or index % 2 == 0 or index > 7:
        return data
    if index == 1:
        return b"\x00\x01\x00\x00\xff\xff"  # no message at all
    message = deserialize_message(data, Image)
    if index == 3:
        message.encoding = "smell8"
    elif index == 5:
        message.height = 2**31
    else:
        shown = picture(0)
        shown[0, 0] = REFUSE
        message.data = shown.tobytes()
    return serialize_message(message)
