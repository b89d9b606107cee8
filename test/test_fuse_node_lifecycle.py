"""fuse_node's life: transitions in any order, bad configurations, signals, simulated time."""

import contextlib
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image
from support.noop_node import SLOW
from support.small_models import SMALL_FEW_STEP
from support.system import (
    ACTIVATE,
    CLEANUP,
    CONFIGURE,
    DEACTIVATE,
    SHUTDOWN_ACTIVE,
    CameraProcess,
    FuseNodeProcess,
    Listener,
    random_domain,
    rgb,
    stamp_ns,
)

from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.runtime.stopwatch import STAGES

SECOND = 10**9
PICTURE = np.full((6, 8, 3), 77, np.uint8)
REAL_NODE = [sys.executable, "-m", "magicfuse_ros.ros.node.fuse_node"]


@pytest.fixture(scope="module")
def domain():
    return random_domain()


@pytest.fixture(scope="module")
def listener(domain):
    with Listener(domain) as listener:
        yield listener


@pytest.fixture(scope="module")
def camera(domain):
    with CameraProcess(domain) as camera:
        yield camera


@pytest.fixture(scope="module")
def idle(domain, tmp_path_factory):
    """A node that waits for transitions, in a namespace of its own, and its listener."""
    log = tmp_path_factory.mktemp("idle") / "log"
    arguments = ["-r", "__ns:=/idle", "-r", "image:=/cam/picture"]
    with (
        FuseNodeProcess(domain, log, parameters={"autostart": False}, arguments=arguments) as node,
        Listener(domain, "/idle/fuse_node") as listener,
    ):
        node.wait_for_log("autostart is false")
        yield node, listener


@pytest.fixture
def start(domain, listener, camera, tmp_path):
    started = []

    def start(**options):
        listener.statuses.clear()
        listener.clients.clear()
        node = FuseNodeProcess(domain, tmp_path / f"log{len(started)}", **options)
        started.append(node)
        return node

    yield start
    for node in started:
        node.stop()
    camera.order(unplug=True)


def publish_until(condition, listener, camera, fields, patience_s=3.0, **options):
    """Publish an image until something has come of it: the node may just be matching the camera."""
    for _ in range(20):
        camera.publish(fields, **options)
        with contextlib.suppress(TimeoutError):
            return listener.wait(condition, "nothing has come of it", patience_s)
    return pytest.fail("nothing has come of it")


def resources(node):
    folder = Path(f"/proc/{node.process.pid}")
    return len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))


def test_transitions_in_any_order_leak_nothing(idle, camera):
    node, listener = idle
    assert listener.state() == "unconfigured"
    assert not listener.change_state(ACTIVATE)
    assert listener.state() == "unconfigured"

    def cycle():
        steps = [CONFIGURE, ACTIVATE, DEACTIVATE, ACTIVATE, DEACTIVATE, CLEANUP, CONFIGURE, CLEANUP]
        expected = ["inactive", "active"] * 2 + ["inactive", "unconfigured"] * 2
        for step, state in zip(steps, expected, strict=True):
            assert listener.change_state(step)
            assert listener.state() == state

    # A leak grows in every round; a process elsewhere that is discovered late costs once.
    for _ in range(5):
        cycle()
        before = resources(node)
        for _ in range(10):
            cycle()
        after = resources(node)
        if after == before:
            break
    assert after == before

    assert listener.change_state(CONFIGURE)
    assert listener.change_state(ACTIVATE)
    magimg = listener.hear("/idle/fuse_node/magimg", Image)
    publish_until(lambda: magimg, listener, camera, rgb(PICTURE, SECOND), topic="/cam/picture")
    listener.forget(magimg)
    assert listener.change_state(DEACTIVATE)
    assert listener.change_state(CLEANUP)


@pytest.mark.parametrize(
    ("bad", "complaint", "good"),
    [
        ({"model_width": 320}, "model_width is 320 and model_height is 0", {"model_width": 0}),
        ({"labels": "moon"}, "unknown label set 'moon'; accepted: ", {"labels": ""}),
        (
            {"semantic__id_map": "unicorn:3"},
            "class 'unicorn' is not in the label set",
            {"semantic__id_map": ""},
        ),
        ({"model": "missing"}, "model 'missing' is not there; give the path", {"model": "tiny"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_configured_leaves_it_unconfigured(idle, bad, complaint, good):
    node, listener = idle
    already = len(node.lines("ERROR"))
    assert all(result.successful for result in listener.set_parameters(**bad))
    assert not listener.change_state(CONFIGURE)
    assert listener.state() == "unconfigured"
    (line,) = node.lines("ERROR")[already:]
    assert complaint in line
    assert "ros2 lifecycle set /idle/fuse_node configure" in line
    status, values = listener.next_status()
    assert status.level == DiagnosticStatus.ERROR
    assert complaint in status.message
    assert values["state"] == "unconfigured"
    assert "Traceback" not in node.log

    assert all(result.successful for result in listener.set_parameters(**good))
    assert listener.change_state(CONFIGURE)
    assert listener.change_state(CLEANUP)


def test_the_compressed_topic_follows_the_remapping_of_image(idle):
    _, listener = idle
    assert all(r.successful for r in listener.set_parameters(input_transport="compressed"))
    assert listener.change_state(CONFIGURE)
    assert listener.change_state(ACTIVATE)
    _, values = listener.next_status(lambda _, values: values["state"] == "active")
    assert values["input_topic"] == "/cam/picture/compressed"
    assert listener.change_state(DEACTIVATE)
    assert listener.change_state(CLEANUP)
    assert all(r.successful for r in listener.set_parameters(input_transport="raw"))


def test_large_best_effort_images_without_a_profile_are_warned_of(start, listener, camera):
    node = start(FASTDDS_DEFAULT_PROFILES_FILE=None)
    node.wait_for_log("Active")
    fields = rgb(PICTURE, "now", width=500, height=400, step=1500, data=600_000)

    def warned():
        return [status for _, status in listener.statuses if "585 KiB" in status.message]

    best_effort = {"reliability": "best_effort", "rate_hz": 20, "repeat": 40}
    publish_until(warned, listener, camera, fields, **best_effort)
    assert warned()[0].level == DiagnosticStatus.WARN
    (line,) = [line for line in node.lines("WARN") if "Images of 585 KiB arrive" in line]
    assert "config/fastdds.xml" in line


def test_shutdown_is_final_and_the_process_still_stops_cleanly(start, listener):
    node = start()
    node.wait_for_log("Active")
    assert listener.change_state(SHUTDOWN_ACTIVE)
    assert listener.state() == "finalized"
    node.send(signal.SIGTERM)
    assert node.exit_code() == 0
    assert node.lines("ERROR") == []


def test_nothing_is_published_after_deactivation_and_the_account_holds(start, listener, camera):
    node = start()
    node.wait_for_log("Active")
    magimg = listener.hear("/fuse_node/magimg", Image)
    picture = PICTURE.copy()
    picture[0, 0] = SLOW
    for _ in range(20):  # until one is waiting when it is deactivated
        camera.publish(*(rgb(picture, count * SECOND) for count in range(1, 11)), rate_hz=10)
        assert listener.change_state(DEACTIVATE)
        _, values = listener.next_status(lambda _, values: values["state"] == "inactive")
        assert values["frames_pending"] == "0"
        assert int(values["frames_in"]) == int(values["frames_out"]) + int(values["dropped_total"])
        if int(values.get("dropped.inactive", 0)) >= 1:
            break
        assert listener.change_state(ACTIVATE)
    assert int(values["dropped.inactive"]) >= 1
    _, later = listener.next_status()
    assert later["frames_out"] == values["frames_out"]
    assert len(magimg) <= int(values["frames_out"])

    (result,) = listener.set_parameters(model="other")
    assert result.successful
    assert not listener.change_state(ACTIVATE)
    assert listener.state() == "inactive"
    assert "model changed; clean up and configure first" in node.lines("ERROR")[-1]
    listener.forget(magimg)


def test_bad_values_at_the_start_are_one_error_line_and_can_be_mended(start, listener):
    bad = {"steps": 5000, "jpeg_quality": "high", "tau": 7.0, "input_transport": "theora"}
    node = start(parameters=bad)
    node.wait_for_log("Cannot configure")
    (line,) = node.lines("ERROR")
    assert "steps is 5000; accepted: an integer from 0 to 1000" in line
    assert "tau is 7.0; accepted: a decimal number from -1.0 to 1.0" in line
    assert "input_transport is 'theora'; accepted: raw, compressed" in line
    assert "jpeg_quality is 'high'; accepted: an integer from 1 to 100" in line
    assert "Traceback" not in node.log
    assert listener.state() == "unconfigured"

    good = {"steps": 5, "jpeg_quality": 80, "tau": 1, "input_transport": "raw"}
    assert all(result.successful for result in listener.set_parameters(**good))
    assert listener.change_state(CONFIGURE)
    assert listener.change_state(ACTIVATE)
    assert listener.state() == "active"


def test_the_real_engine_explains_what_it_cannot_load_and_then_fuses(
    start, listener, camera, tmp_path
):
    (tmp_path / "config.json").write_text('{"name": ')
    small = tmp_path / "small"
    MagicFuse.from_config(SMALL_FEW_STEP).save_pretrained(small)
    node = start(parameters={"model": "/nowhere/weights"}, command=REAL_NODE)
    node.wait_for_log("Cannot configure")
    attempts = [
        ({}, "/nowhere/weights"),
        ({"model": str(tmp_path)}, "config.json"),
        ({"model": str(small), "labels": "moon"}, "unknown label set 'moon'; accepted: "),
        ({"labels": "", "device": "abacus"}, "device is 'abacus'; accepted: "),
        ({"device": "cpu", "backend": "steam"}, "backend is 'steam'; accepted: "),
    ]
    for count, (parameters, complaint) in enumerate(attempts, start=1):
        if parameters:
            assert all(result.successful for result in listener.set_parameters(**parameters))
            assert not listener.change_state(CONFIGURE)
        assert listener.state() == "unconfigured"
        assert len(node.lines("ERROR")) == count
        assert complaint in node.lines("ERROR")[-1]
    assert "Traceback" not in node.log

    (result,) = listener.set_parameters(backend="eager")  # OpenVINO: test_fuse_node_backends.py
    assert result.successful
    assert listener.change_state(CONFIGURE)
    assert listener.change_state(ACTIVATE)
    heard = {
        name: listener.hear(f"/fuse_node/{name}", Image)
        for name in ("magimg", "semantic/mask", "semantic/confidence", "infrared", "enhanced")
    }
    picture = rgb(np.full((30, 50, 3), 90, np.uint8), 7 * SECOND, "front")
    publish_until(lambda: all(heard.values()), listener, camera, picture, patience_s=20.0)
    for name, (message, *_) in heard.items():
        assert (message.width, message.height) == (50, 30)
        assert message.encoding == ("rgb8" if name in {"magimg", "enhanced"} else "mono8")
        assert stamp_ns(message) == 7 * SECOND
        assert message.header.frame_id == "front"
    status, values = listener.next_status(lambda _, values: int(values["frames_out"]) >= 1)
    assert values["trained"] == "false"
    assert "untrained" in status.message
    # The engine's stages and the node's own, none under another's name.
    timed = {key.split(".")[1] for key in values if key.startswith("stage_ms.")}
    assert timed == {"wait", "read", *STAGES, "publish", "total"}
    assert "stage_ms.denoise.p95" in values
    for received in heard.values():
        listener.forget(received)


def test_arguments_that_ros_cannot_read_end_in_one_line(start):
    node = start(arguments=["--params-file", "/nowhere/fuse.yaml"])
    assert node.exit_code() == 2
    assert "/nowhere/fuse.yaml" in node.log
    assert "Traceback" not in node.log


@pytest.mark.fault
def test_signals_while_fusing_are_a_clean_stop(start, listener, camera):
    orders = {
        "twice": [signal.SIGINT, signal.SIGINT],
        "all": [signal.SIGINT, signal.SIGTERM, signal.SIGINT],
    }
    nodes = {
        name: start(arguments=["-r", f"__ns:=/{name}", "-r", "image:=/image"], NOOP_DELAY_S="0.05")
        for name in orders
    }
    for node in nodes.values():
        node.wait_for_log("Active")
    heard = [listener.hear(f"/{name}/fuse_node/magimg", Image) for name in orders]
    for _ in range(20):
        camera.begin(
            topic="/image",
            type="raw",
            messages=[rgb(PICTURE, "now")],
            rate_hz=30,
            repeat=90,
            subscribers=len(nodes),
        )
        with contextlib.suppress(TimeoutError):
            listener.wait(lambda: all(heard), "not every node fuses", 3.0)
            break
        camera.end()
    else:
        pytest.fail("not every node fuses")
    for name, node in nodes.items():
        node.send(*orders[name])
    for node in nodes.values():
        assert node.exit_code() == 0
        assert "Stopping" in node.log
        assert "Traceback" not in node.log
        assert node.lines("ERROR") == []
    camera.end()
    for received in heard:
        listener.forget(received)


@pytest.mark.fault
def test_signals_while_loading_do_not_wait_for_the_load(start):
    numbers = [signal.SIGINT, signal.SIGTERM]
    nodes = [start(NOOP_LOAD_S="3600") for _ in numbers]
    for node in nodes:
        node.wait_for_log("loading for 1 s")
    for node, number in zip(nodes, numbers, strict=True):
        node.send(number)
    for node in nodes:
        assert node.exit_code() == 0
        assert "Traceback" not in node.log
        assert node.lines("ERROR") == []
        assert "Asked to stop while the engine was loading" in node.log


def test_loading_shows_progress_in_the_log_and_in_diagnostics(start, listener, tmp_path):
    node = start(NOOP_LOAD_S="3600", NOOP_LOADED=str(tmp_path / "loaded"))
    listener.next_status(lambda _, values: values["state"] == "configuring")
    node.wait_for_log("loading for 1 s")
    (tmp_path / "loaded").touch()
    node.wait_for_log("Active")
    listener.next_status(lambda _, values: values["state"] == "active")


@pytest.mark.fault
def test_simulated_time_that_stands_still_and_jumps_back(start, listener, camera):
    node = start(parameters={"use_sim_time": True})
    node.wait_for_log("Active")
    magimg = listener.hear("/fuse_node/magimg", Image)

    def tick(moment):  # /clock is best effort: until it arrives
        fields = {"stamp": [moment // SECOND, moment % SECOND]}
        for _ in range(20):
            camera.publish(fields, topic="/clock", kind="clock")
            listener.next_status()
            if stamp_ns(listener.statuses[-1][0]) == moment:
                return
        pytest.fail("the node does not follow /clock")

    def send(moment):
        camera.publish(rgb(PICTURE, moment))
        listener.wait(lambda: magimg and stamp_ns(magimg[-1]) == moment, "not fused")

    tick(100 * SECOND)
    standing = 100 * SECOND - SECOND // 20
    publish_until(lambda: magimg, listener, camera, rgb(PICTURE, standing))
    for count in range(1, 4):  # the clock stands still
        send(standing + count)
    status, values = listener.next_status(lambda _, values: values["frames_pending"] == "0")
    assert float(values["age_ms.p50"]) == pytest.approx(50.0)
    assert float(values["age_ms.max"]) == pytest.approx(50.0)
    assert values["stamps_backwards"] == "0"
    assert status.level == DiagnosticStatus.OK

    tick(10 * SECOND)  # the recording starts again
    send(10 * SECOND - SECOND // 20)
    send(10 * SECOND - SECOND // 25)
    _, values = listener.next_status(lambda _, values: values["stamps_backwards"] == "1")
    assert 0.0 < float(values["age_ms.max"]) <= 50.0
    assert int(values["frames_in"]) == int(values["frames_out"]) + int(values["dropped_total"])
    listener.forget(magimg)
