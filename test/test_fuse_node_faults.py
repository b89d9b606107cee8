"""Faults around a running node, across processes, and what the user sees of them.

The matrix of all faults is in docs/faults.md: `python -m pytest -m fault` runs every cell. In each,
frames in = frames out + counted drops + pending.
"""

import contextlib
import signal

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image
from support.noop_node import HANG, NO_LOAD_STEPS
from support.system import (
    CameraProcess,
    FuseNodeProcess,
    Listener,
    adds_up,
    random_domain,
    rgb,
    send_until_fused,
    stamp_ns,
)

pytestmark = pytest.mark.fault

SECOND = 10**9
PICTURE = np.full((6, 8, 3), 77, np.uint8)
HANGING = PICTURE.copy()
HANGING[0, 0] = HANG


@pytest.fixture(scope="module")
def domain():
    return random_domain()


@pytest.fixture(scope="module")
def listener(domain):
    with Listener(domain) as listener:
        yield listener


@pytest.fixture
def start(domain, listener, tmp_path):
    started = []

    def start(**options):
        listener.statuses.clear()
        listener.clients.clear()
        node = FuseNodeProcess(domain, tmp_path / f"log{len(started)}", **options)
        started.append(node)
        node.wait_for_log("Active")
        return node

    yield start
    for node in started:
        node.stop()


@pytest.fixture
def camera(domain):
    with CameraProcess(domain) as camera:
        yield camera


def test_an_engine_that_hangs_is_given_up_for_the_next_backend(start, listener, camera):
    # Long enough for a good frame on a machine that is busy with something else.
    node = start(parameters={"watchdog_s": 2.0})
    magimg = listener.hear("/fuse_node/magimg", Image)
    send_until_fused(camera, listener, magimg, rgb(PICTURE, 1 * SECOND))

    camera.publish(rgb(HANGING, 2 * SECOND))
    status, values = listener.next_status(lambda _, v: v.get("backend") == "spare")
    assert values["degraded"] == "true"
    assert values["dropped.engine_hung"] == "1"
    assert "frames lost to engine_hung" in status.message
    assert adds_up(values)
    send_until_fused(camera, listener, magimg, rgb(PICTURE, 3 * SECOND))
    listener.next_status(lambda s, _: "a backend hung, running on spare" in s.message)

    # There is nothing behind the spare: the same is loaded again.
    camera.publish(rgb(HANGING, 4 * SECOND))
    node.wait_for_log("backend spare hung, loading the same again in its place")
    send_until_fused(camera, listener, magimg, rgb(PICTURE, 5 * SECOND))
    _, values = listener.next_status(lambda _, v: v["dropped.engine_hung"] == "2")
    assert adds_up(values)
    assert {stamp_ns(message) // SECOND for message in magimg} == {1, 3, 5}

    # Two threads hang in native code, as it were: the process ends in time all the same.
    node.send(signal.SIGTERM)
    assert node.exit_code() == 0
    listener.forget(magimg)


def test_an_engine_that_is_gone_is_loaded_again_with_the_values_in_force(
    start, listener, camera, tmp_path
):
    loaded = tmp_path / "loaded"
    loaded.touch()
    node = start(parameters={"watchdog_s": 2.0}, NOOP_LOAD_S="3600", NOOP_LOADED=str(loaded))
    confidence = listener.hear("/fuse_node/semantic/confidence", Image)

    def steps(value):
        (result,) = listener.set_parameters(steps=value)
        assert result.successful, result.reason

    def fused_in(moment):
        return send_until_fused(camera, listener, confidence, rgb(PICTURE, moment * SECOND)).data[
            -1
        ]

    assert fused_in(1) == 0

    # What is set while the next engine is loaded holds for it.
    loaded.unlink()
    camera.publish(rgb(HANGING, 2 * SECOND))
    status, _ = listener.next_status(lambda s, _: "no engine yet" in s.message)
    assert "frames are dropped meanwhile: loading" in status.message
    assert status.level in {DiagnosticStatus.WARN, DiagnosticStatus.ERROR}
    steps(5)
    loaded.touch()
    assert fused_in(3) == 5

    # One that cannot be loaded is told, tried again, and loaded when a parameter changes.
    steps(NO_LOAD_STEPS)
    camera.publish(rgb(HANGING, 4 * SECOND))
    status, values = listener.next_status(lambda s, _: "no engine: told not to load" in s.message)
    assert status.level == DiagnosticStatus.ERROR
    assert values["state"] == "active"
    assert adds_up(values)
    node.wait_for_log("No engine: told not to load. It is loaded again in 2 s")
    (result,) = listener.set_parameters(semantic__id_map="unicorn:3")
    assert "class 'unicorn' is not in the label set" in result.reason
    steps(7)
    assert fused_in(5) == 7
    _, values = listener.next_status(lambda s, _: "no engine" not in s.message)
    assert adds_up(values)
    listener.forget(confidence)


def test_without_a_watchdog_a_hang_is_told_and_nothing_is_given_up(start, listener, camera):
    node = start(parameters={"watchdog_s": 0.0})
    magimg = listener.hear("/fuse_node/magimg", Image)
    send_until_fused(camera, listener, magimg, rgb(PICTURE, 1 * SECOND))
    camera.publish(rgb(HANGING, 2 * SECOND))
    status, values = listener.next_status(lambda s, _: s.level == DiagnosticStatus.ERROR)
    assert "the engine has been busy with one frame for" in status.message
    assert (values["backend"], values["frames_pending"]) == ("noop", "1")
    assert adds_up(values)
    assert "hung" not in node.log
    listener.forget(magimg)


def test_a_camera_that_is_killed_and_comes_back_is_heard_again(start, listener, domain):
    start()
    magimg = listener.hear("/fuse_node/magimg", Image)
    with CameraProcess(domain) as camera:
        send_until_fused(camera, listener, magimg, rgb(PICTURE, 1 * SECOND))
        camera.process.kill()
        camera.process.wait()
    status, _ = listener.next_status(lambda s, _: s.level == DiagnosticStatus.STALE)
    assert "no frames on /image for" in status.message
    with CameraProcess(domain) as camera:
        send_until_fused(camera, listener, magimg, rgb(PICTURE, 2 * SECOND))
        _, values = listener.next_status(lambda _, v: v["frames_pending"] == "0")
    assert adds_up(values)
    listener.forget(magimg)


def test_a_node_that_is_killed_amid_frames_starts_again_beside_a_running_camera(
    start, listener, camera
):
    magimg = listener.hear_later("/fuse_node/magimg", Image)
    for life, number in enumerate((signal.SIGINT, signal.SIGTERM, signal.SIGKILL, None), start=1):
        node = start()
        listener.wait(lambda: listener.publishers(magimg) > 0, "the node does not publish")
        del magimg[:]
        for _ in range(20):  # the first ones may go by while node and camera get to know each other
            camera.begin(topic="/image", type="raw", rate_hz=50, repeat=100,
                         messages=[rgb(PICTURE, life * SECOND)])  # fmt: skip
            with contextlib.suppress(TimeoutError):
                listener.wait(lambda: magimg, "nothing is fused", 2.0)
                break
            camera.end()
        else:
            pytest.fail("nothing is fused")
        assert adds_up(listener.next_status()[1])
        if number is not None:
            node.send(number)
            assert node.exit_code() == (-signal.SIGKILL if number == signal.SIGKILL else 0)
        assert camera.end()["sent"] == 100
        assert {stamp_ns(message) for message in magimg} == {life * SECOND}
    listener.forget(magimg)


def test_best_effort_frames_that_the_network_loses_are_not_frames_in(start, listener, camera):
    start(parameters={"input_reliability": "best_effort"})
    magimg = listener.hear("/fuse_node/magimg", Image)
    # 2.7 MB each, in a burst: more than a socket's buffers hold, and nobody sends them again.
    width, height = 1280, 720
    fields = rgb(
        PICTURE, "now", width=width, height=height, step=width * 3, data=width * height * 3
    )
    sent, seen = 0, [-1]

    def settled(_, values):
        still, seen[0] = seen[0] == int(values["frames_in"]), int(values["frames_in"])
        return still and values["frames_pending"] == "0"

    for _ in range(20):  # on a busy machine a whole burst may be lost
        sent += camera.publish(fields, repeat=60, reliability="best_effort")["sent"]
        _, values = listener.next_status(settled)
        if int(values["frames_in"]) > 0:
            break
    assert 0 < int(values["frames_in"]) <= sent
    assert adds_up(values)
    assert len(magimg) <= int(values["frames_out"])
    listener.forget(magimg)
