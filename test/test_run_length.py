"""The mask in Autoware's run-length encoding."""

import struct

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from support.system import CameraProcess, FuseNodeProcess, Listener, random_domain, rgb, stamp_ns

from magicfuse_ros.ros.images.codec import encode_runs

SECOND = 10**9


def decode(message):
    """Read the runs one by one: a byte and a 32-bit integer each."""
    pixels = []
    for value, length in struct.iter_unpack("<Bi", bytes(message.data)):
        pixels += [value] * length
    return np.array(pixels, np.uint8).reshape(message.height, message.width)


def test_runs_go_on_over_the_end_of_a_row():
    mask = np.array([[7, 7, 3], [3, 3, 255]], np.uint8)

    message = encode_runs(mask, Header(frame_id="camera"))

    assert bytes(message.data).hex(" ", 5) == "0702000000 0303000000 ff01000000"
    assert (message.height, message.width, message.encoding) == (2, 3, "mono8")
    assert message.header.frame_id == "camera"


@given(
    arrays.arrays(
        np.uint8,
        st.tuples(st.integers(0, 9), st.integers(0, 9)),
        elements=st.sampled_from([0, 1, 255]),
    )
)
@settings(deadline=None)
def test_every_mask_comes_back(mask):
    assert np.array_equal(decode(encode_runs(mask, Header())), mask)
    assert np.array_equal(decode(encode_runs(mask[:, ::-1], Header())), mask[:, ::-1])


def test_the_node_publishes_the_mask_both_ways(tmp_path):
    domain = random_domain()
    parameters = {"semantic.id_map": "'car:7, person:6, *:0'"}
    with (
        FuseNodeProcess(domain, tmp_path / "log", parameters=parameters) as node,
        CameraProcess(domain) as camera,
        Listener(domain) as listener,
    ):
        node.wait_for_log("Active")
        masks = listener.hear("/fuse_node/semantic/mask", Image)
        runs = listener.hear("/fuse_node/semantic/mask/run_length", Image)
        camera.publish(rgb(np.full((6, 8, 3), 77, np.uint8), 5 * SECOND))
        listener.wait(lambda: masks and runs, "nothing published")

    assert stamp_ns(runs[0]) == stamp_ns(masks[0]) == 5 * SECOND
    plain = np.frombuffer(masks[0].data, np.uint8).reshape(6, 8)
    assert np.array_equal(decode(runs[0]), plain)
    assert set(plain.ravel().tolist()) == {7, 6}
