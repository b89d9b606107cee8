"""fuse_node and bad input: counted, shown, logged once, and the next good frame is fused."""

import base64
import contextlib
import itertools
from contextlib import ExitStack

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image
from support.system import (
    CameraProcess,
    FuseNodeProcess,
    Listener,
    adds_up,
    random_domain,
    rgb,
    stamp_ns,
)

from magicfuse_ros.ros.images.codec import decode_image

SECOND = 10**9
PICTURE = np.full((6, 8, 3), 77, np.uint8)
JPEG = cv2.imencode(".jpg", PICTURE)[1].tobytes()
PNG = cv2.imencode(".png", PICTURE)[1].tobytes()
TOPICS = {"raw": "/raw/image", "compressed": "/compressed/image/compressed"}
CLOCK = itertools.count(1)


def stamp():
    return next(CLOCK) * SECOND


def coded(data):
    return base64.b64encode(data).decode()


def floats(value):
    pixels = np.full((6, 8), 0.5, "<f4")
    pixels[3, 3] = value
    return {"encoding": "32FC1", "step": 32, "data": coded(pixels.tobytes())}


BAD_IMAGES = {
    "zero_size": {"height": 0, "width": 0, "step": 0, "data": ""},
    "short_data": {"data": 100},
    "unknown_encoding": {"encoding": "rgb565"},
    "non_finite": floats(float("nan")),
    "out_of_range": floats(1e6),
    "too_large": {"height": 2**31, "width": 2**31, "step": 2**32 - 1},
    "bad_step": {"step": 23},
    "odd_size": {"encoding": "nv12", "width": 7, "step": 7},
    "too_small": {"encoding": "bayer_rggb8", "width": 1, "height": 1, "step": 1},
}
BAD_PICTURES = {
    "corrupt_jpeg": JPEG[:-12] + JPEG[-2:],  # its end is there, what lies before it is not
    "corrupt_png": PNG[:-20] + bytes([PNG[-20] ^ 1]) + PNG[-19:],
    "unknown_format": b"GIF89a" + JPEG,
    "short_data": b"",
}


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    domain = random_domain()
    folder = tmp_path_factory.mktemp("nodes")
    with ExitStack() as stack:
        nodes = {
            kind: stack.enter_context(
                FuseNodeProcess(
                    domain,
                    folder / kind,
                    parameters={"input_transport": kind},
                    arguments=["-r", f"__ns:=/{kind}"],
                )
            )
            for kind in TOPICS
        }
        camera = stack.enter_context(CameraProcess(domain))
        listeners = {
            kind: stack.enter_context(Listener(domain, f"/{kind}/fuse_node")) for kind in TOPICS
        }
        for kind, node in nodes.items():
            node.wait_for_log("Active")
            introduce(camera, listeners[kind], kind)
        yield nodes, camera, listeners


GOOD = {
    "raw": rgb(PICTURE, 0),
    "compressed": {
        "format": "rgb8; jpeg compressed bgr8",
        "data": coded(JPEG),
        "frame_id": "camera",
    },
}


def introduce(camera, listener, kind):
    """Publish good frames until one comes out: from then on camera and node know each other."""
    magimg = listener.hear(f"/{kind}/fuse_node/magimg", Image)
    for attempt in range(10):
        sent = stamp()
        fields = GOOD[kind] | {"stamp": [sent // SECOND, 0]}
        camera.publish(fields, topic=TOPICS[kind], kind=kind)
        with contextlib.suppress(TimeoutError):
            patience_s = 3.0 * (attempt + 1)
            listener.wait(lambda s=sent: s in map(stamp_ns, magimg), "not fused", patience_s)
            return listener.forget(magimg)
    return pytest.fail(f"the {kind} node and its camera do not find each other")


def check_survival(system, kind, reason, bad):
    nodes, camera, listeners = system
    good = GOOD[kind]
    listener, topic = listeners[kind], TOPICS[kind]
    magimg = listener.hear(f"/{kind}/fuse_node/magimg", Image)
    key = f"dropped.{reason}"
    before = int(listener.next_status()[1].get(key, 0))
    for count in (before + 1, before + 2):
        camera.publish(bad | {"stamp": [stamp() // SECOND, 0]}, topic=topic, kind=kind)
        status, values = listener.next_status(lambda _, v, n=count: v.get(key) == str(n))
    assert status.level == DiagnosticStatus.WARN
    assert reason in status.message
    assert values["state"] == "active"
    assert magimg == []
    sent = stamp()
    camera.publish(good | {"stamp": [sent // SECOND, 0]}, topic=topic, kind=kind)
    listener.wait(lambda: magimg, "the good frame was not fused")
    assert stamp_ns(magimg[0]) == sent
    assert np.abs(decode_image(magimg[0]).astype(int) - PICTURE).max() <= 3
    _, values = listener.next_status(lambda _, v: v["frames_pending"] == "0")
    assert adds_up(values)
    lines = [line for line in nodes[kind].lines("WARN") if f"dropped, {reason} " in line]
    assert len(lines) == 1, lines
    assert "Traceback" not in nodes[kind].log
    listener.forget(magimg)


@pytest.mark.fault
@pytest.mark.parametrize("reason", BAD_IMAGES)
def test_a_bad_image_is_counted_and_the_next_good_one_fused(system, reason):
    check_survival(system, "raw", reason, GOOD["raw"] | BAD_IMAGES[reason])


@pytest.mark.fault
@pytest.mark.parametrize("reason", BAD_PICTURES)
def test_a_bad_compressed_image_is_counted_and_the_next_good_one_fused(system, reason):
    bad = GOOD["compressed"] | {"data": coded(BAD_PICTURES[reason])}
    check_survival(system, "compressed", reason, bad)


@pytest.mark.parametrize("picture", [JPEG, PNG], ids=["jpeg", "png"])
def test_compressed_input_keeps_its_header(system, picture):
    _, camera, listeners = system
    listener = listeners["compressed"]
    magimg = listener.hear("/compressed/fuse_node/magimg", Image)
    fields = {"data": coded(picture), "frame_id": "left", "stamp": [stamp() // SECOND, 42]}
    camera.publish(fields, topic="/compressed/image/compressed", kind="compressed")
    listener.wait(lambda: magimg, "nothing came out")
    assert magimg[0].header.frame_id == "left"
    assert magimg[0].header.stamp.nanosec == 42
    listener.forget(magimg)


@pytest.mark.fault
def test_time_going_backwards_is_counted_and_fused(system):
    nodes, camera, listeners = system
    listener = listeners["raw"]
    magimg = listener.hear("/raw/fuse_node/magimg", Image)
    _, before = listener.next_status()
    high, low = 500_000 * SECOND, 400_000 * SECOND
    for moment in (high, low, low + SECOND):
        camera.publish(rgb(PICTURE, moment), topic="/raw/image")
        listener.wait(lambda m=moment: magimg and stamp_ns(magimg[-1]) == m, "not fused")
    assert [stamp_ns(message) for message in magimg] == [high, low, low + SECOND]
    _, after = listener.next_status()
    assert int(after["stamps_backwards"]) == int(before["stamps_backwards"]) + 1
    assert after["dropped_total"] == before["dropped_total"]
    assert adds_up(after)
    (line,) = [line for line in nodes["raw"].lines("WARN") if "went back" in line]
    assert "100000.000 s" in line
    listener.forget(magimg)
