"""fuse_node with a no-op engine, across processes: what comes out, for whom, and when."""

import contextlib
import json
import re
import time

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String
from support.noop_node import FAIL, REFUSE, SLOW
from support.system import (
    ACTIVATE,
    CLEANUP,
    CONFIGURE,
    DEACTIVATE,
    PATIENCE_S,
    CameraProcess,
    FuseNodeProcess,
    Listener,
    adds_up,
    random_domain,
    rgb,
    stamp_ns,
)

from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.ros.images.codec import decode_compressed, decode_image
from magicfuse_ros.ros.node.parameters import PARAMETERS

PICTURE = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
SECOND = 10**9


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    domain = random_domain()
    with (
        FuseNodeProcess(domain, tmp_path_factory.mktemp("node") / "log") as node,
        CameraProcess(domain) as camera,
        Listener(domain) as listener,
    ):
        node.wait_for_log("Active")
        yield node, camera, listener


@pytest.fixture(scope="module")
def stamps():
    """A new stamp each time, rising."""
    count = iter(range(1, 10**6))
    return lambda: next(count) * SECOND + 123


def stamped(messages, stamp):
    return [message for message in messages if stamp_ns(message) == stamp]


def exchange(system, received, fields):
    """Publish an image until it comes out; return what does. Nothing sent before is on its way."""
    _, camera, listener = system
    seconds, nanoseconds = fields["stamp"]
    for attempt in range(10):  # a frame may come just while the node matches the camera
        stamp = seconds * SECOND + nanoseconds + attempt
        camera.publish(fields | {"stamp": [seconds, nanoseconds + attempt]})
        with contextlib.suppress(TimeoutError):
            patience_s = 3.0 * (attempt + 1)
            listener.wait(lambda s=stamp: stamped(received, s), "no frame came out", patience_s)
            return stamped(received, stamp)[0]
    return pytest.fail("no frame came out")


def test_every_output_carries_the_inputs_stamp_and_frame_id(system, stamps):
    _, camera, listener = system
    topics = {
        "magimg": Image,
        "magimg/compressed": CompressedImage,
        "semantic/mask": Image,
        "semantic/confidence": Image,
        "semantic/color": Image,
        "infrared": Image,
        "enhanced": Image,
        "camera_info": CameraInfo,
    }
    heard = {name: listener.hear(f"/fuse_node/{name}", kind) for name, kind in topics.items()}
    k = [600.0, 0.0, 7.5, 0.0, 600.0, 5.5, 0.0, 0.0, 1.0]
    info = {"width": 16, "height": 12, "k": k, "frame_id": "other", "stamp": [5, 5]}
    stamp = stamps()
    for _ in range(20):  # the first ones may come while the node matches them
        camera.publish(info, topic="/camera_info", kind="info")
        camera.publish(rgb(PICTURE, stamp, "front_camera"))
        with contextlib.suppress(TimeoutError):
            listener.wait(lambda: all(heard.values()), "not every output came", 3.0)
            break
    assert {name: bool(messages) for name, messages in heard.items()} == dict.fromkeys(topics, True)
    for message in [message for messages in heard.values() for message in messages]:
        assert stamp_ns(message) == stamp
        assert message.header.frame_id == "front_camera"

    assert np.array_equal(decode_image(heard["magimg"][0]), PICTURE)
    assert heard["magimg"][0].encoding == "rgb8"
    mask = np.repeat([[1, 1, 1, 1, 2, 2, 2, 2]], 6, axis=0).astype(np.uint8)
    assert heard["semantic/mask"][0].encoding == "mono8"
    assert bytes(heard["semantic/mask"][0].data) == mask.tobytes()
    assert heard["semantic/confidence"][0].data[0] == 255
    assert heard["infrared"][0].encoding == "mono8"
    assert bytes(heard["infrared"][0].data) == PICTURE[:, :, 0].tobytes()
    assert np.array_equal(decode_image(heard["enhanced"][0]), PICTURE)
    assert heard["semantic/color"][0].encoding == "rgb8"
    assert not np.array_equal(decode_image(heard["semantic/color"][0]), PICTURE)
    jpeg = decode_compressed(heard["magimg/compressed"][0]).astype(int)
    assert np.abs(jpeg - PICTURE).mean() < 20

    scaled = heard["camera_info"][0]
    assert (scaled.width, scaled.height) == (8, 6)
    assert scaled.k[0] == pytest.approx(300.0)
    for messages in heard.values():
        listener.forget(messages)


def test_extras_are_computed_only_while_somebody_listens(system, stamps):
    _, _, listener = system
    confidence = listener.hear("/fuse_node/semantic/confidence", Image)

    def computed(extras):
        """Publish until a frame comes with so many extras: DDS tells of a listener in its time."""
        end = time.monotonic() + PATIENCE_S
        while exchange(system, confidence, rgb(PICTURE, stamps())).data[40] != extras:
            assert time.monotonic() < end, f"no frame with {extras} extras"

    computed(0)
    infrared = listener.hear("/fuse_node/infrared", Image)
    computed(1)
    listener.wait(lambda: infrared, "no infrared")
    listener.forget(infrared)
    computed(0)
    listener.forget(confidence)


@pytest.mark.parametrize("camera_reliability", ["reliable", "best_effort"])
def test_any_camera_and_any_subscriber_connect(system, stamps, camera_reliability):
    _, camera, listener = system
    camera.order(unplug=True)
    reliable = listener.hear("/fuse_node/magimg", Image, "reliable")
    best_effort = listener.hear("/fuse_node/magimg", Image, "best_effort")
    camera.publish(rgb(PICTURE, stamps()), reliability=camera_reliability)
    listener.next_status(
        lambda _, values: (
            values["input_reliability"] == camera_reliability and values["input_publishers"] == "1"
        )
    )
    for _ in range(20):  # what is sent best effort, here or there, is sent once
        stamp = stamps()
        camera.publish(rgb(PICTURE, stamp), reliability=camera_reliability)
        with contextlib.suppress(TimeoutError):
            for received in (reliable, best_effort):
                listener.wait(lambda r=received, s=stamp: stamped(r, s), "not heard", 3.0)
            break
    else:
        pytest.fail(f"{len(reliable)} frames heard reliably, {len(best_effort)} best effort")
    listener.forget(reliable)
    listener.forget(best_effort)
    camera.order(unplug=True)


def test_a_demanded_reliability_that_cannot_match_is_said(system, stamps):
    _, camera, listener = system
    (result,) = listener.set_parameters(input_reliability="reliable")
    assert result.successful, result.reason
    camera.publish(rgb(PICTURE, stamps()), reliability="best_effort", subscribers=0)
    status, _ = listener.next_status(lambda status, _: "input_reliability" in status.message)
    assert status.level == DiagnosticStatus.WARN
    (result,) = listener.set_parameters(input_reliability="auto")
    assert result.successful
    listener.next_status(lambda _, values: values["input_reliability"] == "best_effort")
    camera.order(unplug=True)


@pytest.mark.fault
def test_a_topic_of_another_message_type_is_named_with_what_to_set(system):
    node, camera, listener = system
    camera.order(unplug=True)
    camera.publish({"format": "jpeg"}, topic="/image", kind="compressed", subscribers=0)
    text = (
        "/image is published as sensor_msgs/msg/CompressedImage; set input_transport to compressed"
    )
    status, _ = listener.next_status(lambda status, _: text in status.message)
    assert status.level in {DiagnosticStatus.WARN, DiagnosticStatus.STALE}
    node.wait_for_log(re.escape(text))
    assert len([line for line in node.lines("WARN") if text in line]) == 1
    camera.order(unplug=True)
    listener.next_status(lambda status, _: text not in status.message)


def test_ids_and_names_are_latched_in_a_message_of_ros_itself(system):
    _, _, listener = system
    labels = listener.hear("/fuse_node/semantic/labels", String, latched=True)
    listener.wait(lambda: labels, "no labels")
    names = LabelSet.load("drive").names()
    assert json.loads(labels[-1].data) == [
        {"id": index, "name": name} for index, name in enumerate(names)
    ]
    (result,) = listener.set_parameters(semantic__id_map=f"{names[1]}:6")
    assert result.successful
    listener.wait(lambda: json.loads(labels[-1].data) == [{"id": 6, "name": names[1]}], labels)
    (result,) = listener.set_parameters(semantic__id_map="")
    assert result.successful
    listener.forget(labels)


@pytest.mark.fault
def test_resolution_and_encoding_may_change_from_frame_to_frame(system, stamps):
    _, _, listener = system
    magimg = listener.hear("/fuse_node/magimg", Image)
    grey = {"encoding": "mono8", "step": 24}
    for picture, changes in [
        (PICTURE, {}),
        (np.full((11, 17, 3), 9, np.uint8), {}),
        (np.full((3, 1, 3), 9, np.uint8), {}),
        (PICTURE, grey | {"width": 24}),
    ]:
        out = exchange(system, magimg, rgb(picture, stamps(), **changes))
        assert (out.height, out.width) == (picture.shape[0], changes.get("width", picture.shape[1]))
    _, values = listener.next_status(lambda _, values: values["frames_pending"] == "0")
    assert adds_up(values)
    listener.forget(magimg)


def test_enable_pauses_and_counts(system, stamps):
    _, camera, listener = system
    magimg = listener.hear("/fuse_node/magimg", Image)
    exchange(system, magimg, rgb(PICTURE, stamps()))
    before = int(listener.next_status()[1].get("dropped.disabled", 0))
    assert listener.enable(False).success
    unseen = [stamps() for _ in range(3)]
    camera.publish(*(rgb(PICTURE, stamp) for stamp in unseen))
    status, values = listener.next_status(
        lambda _, values: int(values.get("dropped.disabled", 0)) == before + 3
    )
    assert (values["enabled"], values["state"]) == ("false", "active")
    assert status.level == DiagnosticStatus.OK
    assert "paused" in status.message
    assert listener.enable(True).success
    exchange(system, magimg, rgb(PICTURE, stamps()))
    assert not {stamp_ns(message) for message in magimg} & set(unseen)
    listener.forget(magimg)


def test_live_parameters_act_on_the_next_frame(system, stamps):
    _, _, listener = system
    mask = listener.hear("/fuse_node/semantic/mask", Image)
    confidence = listener.hear("/fuse_node/semantic/confidence", Image)
    names = LabelSet.load("drive").names()
    id_map = f"{names[1]}:6, *:0"
    results = listener.set_parameters(
        steps=7, tau=0.3, seed=4, jpeg_quality=50, semantic__id_map=id_map
    )
    assert all(result.successful for result in results), results
    made = exchange(system, mask, rgb(PICTURE, stamps()))
    assert list(made.data[:8]) == [6, 6, 6, 6, 0, 0, 0, 0]
    assert exchange(system, confidence, rgb(PICTURE, stamps())).data[-1] == 7

    (result,) = listener.set_parameters(semantic__min_confidence=0.5)
    assert result.successful
    (result,) = listener.set_parameters(semantic__id_map="")
    assert result.successful
    made = exchange(system, mask, rgb(PICTURE, stamps()))
    assert list(made.data[:8]) == [1, 1, 1, 1, 255, 255, 255, 255]
    assert all(r.successful for r in listener.set_parameters(semantic__min_confidence=0.0, steps=0))
    listener.forget(mask)
    listener.forget(confidence)


def test_a_gap_a_step_back_and_a_deactivation_begin_a_new_stream(system, stamps):
    _, _, listener = system
    confidence = listener.hear("/fuse_node/semantic/confidence", Image)
    stamps()
    start = stamps()
    assert all(r.successful for r in listener.set_parameters(temporal=0.5))

    def frames_of_stream(after_s):
        return exchange(system, confidence, rgb(PICTURE, start + int(after_s * SECOND))).data[
            5 * 8 + 1
        ]

    assert frames_of_stream(0.0) == 1
    assert frames_of_stream(0.1) == 2
    assert frames_of_stream(1.05) == 3
    assert frames_of_stream(2.1) == 1
    assert frames_of_stream(2.2) == 2
    assert frames_of_stream(2.0) == 1
    assert frames_of_stream(2.3) == 2
    for transition in (DEACTIVATE, ACTIVATE):
        assert listener.change_state(transition)
    assert frames_of_stream(2.4) == 1
    assert all(r.successful for r in listener.set_parameters(temporal=0.0))
    for _ in range(3):
        stamps()
    listener.forget(confidence)


def test_steps_that_the_model_was_not_trained_for_are_told_in_log_and_diagnostics(system):
    node, _, listener = system
    warning = "not trained for 900 steps"
    for _ in range(2):
        (result,) = listener.set_parameters(steps=900)
        assert result.successful
        status, _ = listener.next_status(lambda status, _: warning in status.message)
        assert status.level in {DiagnosticStatus.WARN, DiagnosticStatus.STALE}
        (result,) = listener.set_parameters(steps=0)
        assert result.successful
        listener.next_status(lambda status, _: warning not in status.message)
    assert len([line for line in node.lines("WARN") if warning in line]) == 2


@pytest.mark.fault
def test_a_part_that_its_backend_leaves_to_pytorch_degrades_the_node(system):
    node, _, listener = system
    assert listener.set_parameters(steps=901)[0].successful
    warning = "fusion runs in PyTorch"
    status, facts = listener.next_status(lambda status, _: warning in status.message)
    assert status.level in {DiagnosticStatus.WARN, DiagnosticStatus.STALE}
    assert facts["degraded"] == "true"
    assert listener.set_parameters(steps=0)[0].successful
    _, facts = listener.next_status(lambda status, _: warning not in status.message)
    assert facts["degraded"] == "false"
    assert len([line for line in node.lines("WARN") if warning in line]) == 1


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("model", "paper", "model needs a reconfigure: deactivate and clean up first"),
        ("threads", 1, "threads needs a reconfigure"),
        ("steps", 1001, "1000"),
        ("tau", float("nan"), "nan"),
        ("input_bits", 3, "input_bits is 3; accepted: 0, or 8 to 16"),
        ("temporal", 0.95, "0.9"),
        ("jpeg_quality", 0, "100"),
        ("jpeg_quality", "high", "jpeg_quality is 'high'; accepted: an integer from 1 to 100"),
        ("input_reliability", "perfect", "accepted: auto, reliable, best_effort"),
        ("semantic__id_map", "person=6", "accepted: name:id"),
        ("semantic__id_map", "unicorn:6", "class 'unicorn' is not in the label set; accepted: "),
        ("semantic__min_confidence", 1.5, "1.0"),
    ],
)
def test_a_refused_parameter_says_why_and_changes_nothing(system, name, value, reason):
    _, _, listener = system
    (result,) = listener.set_parameters(**{name: value})
    assert not result.successful
    assert reason in result.reason


def test_parameters_describe_themselves(system):
    _, _, listener = system
    descriptors = listener.describe(*(spec.name for spec in PARAMETERS))
    for spec, descriptor in zip(PARAMETERS, descriptors, strict=True):
        assert descriptor.description == spec.description
        if spec.low is not None:
            (limits,) = [*descriptor.integer_range, *descriptor.floating_point_range]
            assert (limits.from_value, limits.to_value) == (spec.low, spec.high)
        if spec.choices:
            assert ", ".join(spec.choices) in descriptor.additional_constraints


@pytest.mark.fault
def test_engine_faults_are_survived_and_two_in_a_row_change_the_backend(system, stamps):
    node, camera, listener = system
    magimg = listener.hear("/fuse_node/magimg", Image)

    def send(command):
        picture = PICTURE.copy()
        picture[0, 0] = command
        camera.publish(rgb(picture, stamps()))

    exchange(system, magimg, rgb(PICTURE, stamps()))  # camera and node know each other
    send(REFUSE)
    listener.next_status(lambda _, values: values.get("dropped.unsupported_frame") == "1")
    send(FAIL)
    status, values = listener.next_status(lambda _, v: v.get("dropped.engine_error") == "1")
    assert status.level == DiagnosticStatus.ERROR
    assert (values["backend"], values["degraded"]) == ("noop", "false")
    exchange(system, magimg, rgb(PICTURE, stamps()))

    send(FAIL)
    listener.next_status(lambda _, values: values["dropped.engine_error"] == "2")
    send(FAIL)
    status, values = listener.next_status(lambda _, v: v["dropped.engine_error"] == "3")
    assert (values["backend"], values["degraded"]) == ("spare", "true")
    assert "backend noop failed, running on spare" in status.message
    assert adds_up(values)
    exchange(system, magimg, rgb(PICTURE, stamps()))
    engine_lines = [line for line in node.lines("ERROR") if "The engine failed" in line]
    assert len(engine_lines) == 1
    assert "told to fail in two lines" in engine_lines[0]

    for transition in (DEACTIVATE, CLEANUP, CONFIGURE, ACTIVATE):
        assert listener.change_state(transition)
    _, values = listener.next_status(lambda _, values: values["state"] == "active")
    assert (values["backend"], values["degraded"]) == ("noop", "false")
    listener.forget(magimg)


@pytest.mark.fault
def test_overload_drops_old_frames_and_fuses_the_newest(system, stamps):
    _, camera, listener = system
    magimg = listener.hear("/fuse_node/magimg", Image)
    exchange(system, magimg, rgb(PICTURE, stamps()))
    _, before = listener.next_status(lambda _, values: values["frames_pending"] == "0")
    picture = PICTURE.copy()
    picture[0, 0] = SLOW
    sent = [stamps() for _ in range(60)]
    camera.publish(*(rgb(picture, stamp) for stamp in sent), rate_hz=20)
    listener.wait(lambda: stamped(magimg, sent[-1]), "the newest frame was not fused")
    _, after = listener.next_status(lambda _, values: values["frames_pending"] == "0")

    def change(key):
        return int(after[key]) - int(before[key])

    # On a busy machine the queues of DDS, of one frame here and there, replace some themselves.
    assert change("frames_in") <= 60
    assert change("dropped.replaced") == change("dropped_total") > 0
    assert change("frames_in") == change("frames_out") + change("dropped_total")
    fused = [stamp_ns(message) for message in magimg if stamp_ns(message) in sent]
    assert len(fused) <= change("frames_out")
    assert fused == sorted(fused)
    listener.forget(magimg)


def test_every_vga_frame_at_30_hz_is_accounted_for(system, stamps):
    _, camera, listener = system
    _, before = listener.next_status()
    magimg = listener.hear("/fuse_node/magimg", Image)
    fields = rgb(PICTURE, "now", width=640, height=480, step=1920, data=640 * 480 * 3)
    camera.begin(topic="/image", type="raw", messages=[fields], rate_hz=30, repeat=75)
    listener.next_status(lambda _, values: float(values["fps_in"]) > 0.0)
    sent = camera.end()["sent"]
    # A queue of DDS keeps its newest frames: on a busy machine some never reach the node.
    counts = [before]

    def settled(_, values):
        counts.append(values)
        arrived = int(values["frames_in"]) > int(before["frames_in"])
        still = counts[-1]["frames_in"] == counts[-2]["frames_in"]
        return arrived and still and values["frames_pending"] == "0"

    _, after = listener.next_status(settled)
    arrived = int(after["frames_in"]) - int(before["frames_in"])
    out = int(after["frames_out"]) - int(before["frames_out"])
    dropped = int(after["dropped_total"]) - int(before["dropped_total"])
    assert sent >= arrived == out + dropped
    assert int(after["frames_in"]) == int(after["frames_out"]) + int(after["dropped_total"])
    reasons = [int(value) for key, value in after.items() if key.startswith("dropped.")]
    assert sum(reasons) == int(after["dropped_total"])
    assert out > 0
    assert (
        0.0 < float(after["age_ms.p50"]) <= float(after["age_ms.p95"]) <= float(after["age_ms.max"])
    )
    assert float(after["memory_mb"]) > 10.0
    listener.wait(lambda: len(magimg) <= out, json.dumps(after))
    listener.forget(magimg)


def test_silence_is_stale(system):
    _, _, listener = system
    status, _ = listener.next_status(lambda status, _: status.level == DiagnosticStatus.STALE)
    assert "no frames on /image" in status.message


def test_compressed_output_is_a_jpeg_of_the_wanted_quality(system, stamps):
    _, _, listener = system
    compressed = listener.hear("/fuse_node/magimg/compressed", CompressedImage)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    sizes = []
    for quality in (95, 10):
        (result,) = listener.set_parameters(jpeg_quality=quality)
        assert result.successful
        message = exchange(system, compressed, rgb(noise, stamps()))
        assert (
            cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR).shape
            == noise.shape
        )
        sizes.append(len(message.data))
    assert sizes[0] > 2 * sizes[1]
    listener.forget(compressed)
