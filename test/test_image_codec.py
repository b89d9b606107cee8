"""Raw pictures: every encoding, padding and byte order, and every way a message can be wrong."""

from __future__ import annotations

import array
import random
import struct
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_reference import ALL, BAYER, GREY_BYTES, YUV_420, YUV_422, RawImage, row_bytes, row_count
from image_reference import decode as reference_decode
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from support.messages import encode_image

from magicfuse_ros.ros.cdr import deserialize, serialize_image
from magicfuse_ros.ros.images.codec import decode_image
from magicfuse_ros.ros.images.pixel_layouts import ENCODINGS
from magicfuse_ros.sources.picture_errors import PictureError

MULTI_BYTE = [
    name for name in ALL if GREY_BYTES.get(name, 1) > 1 or (name in BAYER and BAYER[name][1] > 1)
]


def tolerance(encoding: str) -> float:
    """How far a rounded 8-bit result may lie from the exact value."""
    if encoding in YUV_422 or encoding in YUV_420:
        return 2.0  # OpenCV's coefficients are integers / 2^20, and its luma factor is 1.164
    if encoding in BAYER:
        return 1.01 if BAYER[encoding][1] == 1 else 1.5  # rounded twice
    return 0.501


@st.composite
def raw_images(draw, encodings=ALL):
    """A picture of random content, with random padding after each row and after the end."""
    encoding = draw(st.sampled_from(encodings))
    least = 3 if encoding in BAYER else 1
    width, height = draw(st.integers(least, 11)), draw(st.integers(least, 9))
    if encoding in YUV_422 or encoding in YUV_420:
        width += width % 2
    if encoding in YUV_420:
        height += height % 2
    step = row_bytes(encoding, width) + draw(st.integers(0, 13))
    content = random.Random(draw(st.integers(0, 2**32)))
    is_bigendian = draw(st.booleans())
    data = bytearray(content.randbytes(step * row_count(encoding, height)))
    if encoding == "32FC1":
        order = ">f" if is_bigendian else "<f"
        for row in range(height):
            for column in range(width):
                struct.pack_into(order, data, row * step + column * 4, content.uniform(0.0, 1.0))
    data += content.randbytes(draw(st.integers(0, 5)))
    return RawImage(height, width, encoding, int(is_bigendian), step, bytes(data))


def test_every_encoding_has_a_reference():
    assert sorted(ENCODINGS) == sorted(ALL)


@settings(max_examples=300, deadline=None)
@given(raw_images())
def test_decodes_like_the_reference(image):
    decoded = decode_image(image)
    expected = reference_decode(image)

    assert decoded.shape == (image.height, image.width, 3)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    known = np.isfinite(expected)
    assert known.all() or image.encoding in BAYER
    difference = np.abs(decoded.astype(float) - expected)[known]
    assert difference.size == 0 or difference.max() <= tolerance(image.encoding)


@settings(max_examples=60, deadline=None)
@given(raw_images(encodings=MULTI_BYTE))
def test_byte_order_changes_the_bytes_and_not_the_picture(image):
    size = GREY_BYTES.get(image.encoding, 2)
    used = row_bytes(image.encoding, image.width)
    swapped = bytearray(image.data)
    for row in range(image.height):
        for at in range(row * image.step, row * image.step + used, size):
            swapped[at : at + size] = image.data[at : at + size][::-1]
    other = RawImage(
        **{**vars(image), "data": bytes(swapped), "is_bigendian": 1 - image.is_bigendian}
    )
    assert np.array_equal(decode_image(image), decode_image(other))


@settings(max_examples=100, deadline=None)
@given(raw_images(), st.integers(1, 40))
def test_padding_is_never_seen(image, padding):
    used = row_bytes(image.encoding, image.width)
    rows = [
        image.data[row * image.step : row * image.step + used]
        for row in range(row_count(image.encoding, image.height))
    ]
    padded = b"".join(row + b"\xa5" * padding for row in rows)
    tight = RawImage(**{**vars(image), "step": used, "data": b"".join(rows)})
    wide = RawImage(**{**vars(image), "step": used + padding, "data": padded})
    assert np.array_equal(decode_image(tight), decode_image(wide))


@pytest.mark.parametrize("encoding", [name for name in ALL if name in BAYER])
@pytest.mark.parametrize("rgb", [(200, 0, 0), (0, 180, 0), (0, 0, 160), (30, 90, 250)])
@pytest.mark.parametrize("size", [(3, 3), (4, 6), (7, 5)])
def test_a_mosaic_of_one_colour_is_that_colour_up_to_the_border(encoding, rgb, size):
    pattern, sample_bytes = BAYER[encoding]
    width, height = size
    data = b"".join(
        bytes([rgb["rgb".index(pattern[row % 2 * 2 + column % 2])]] * sample_bytes)
        for row in range(height)
        for column in range(width)
    )
    decoded = decode_image(RawImage(height, width, encoding, 0, width * sample_bytes, data))
    assert np.array_equal(decoded, np.broadcast_to(np.uint8(rgb), decoded.shape))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from(["rgb8", "mono8"]),
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=9),
    st.integers(0, 2**32),
)
def test_round_trip_is_exact(width, height, encoding, frame_id, seed):
    shape = (height, width, 3) if encoding == "rgb8" else (height, width)
    picture = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    header = Header(frame_id=frame_id)
    header.stamp.sec, header.stamp.nanosec = -12, 345

    message = encode_image(picture, encoding, header)

    assert message.header == header
    assert message.step * message.height == len(message.data)
    expected = picture if encoding == "rgb8" else np.stack([picture] * 3, axis=2)
    assert np.array_equal(decode_image(message), expected)
    data = serialize_image(picture, encoding, header)
    assert deserialize(data, Image) == message
    assert len(data) == len(serialize_message(message))  # whose padding is whatever memory held


def test_encodes_pictures_that_are_views():
    picture = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    view = picture[::2, ::-1]
    message = encode_image(view, "rgb8", Header())
    assert np.array_equal(decode_image(message), view)
    assert deserialize(serialize_image(view, "rgb8", Header()), Image) == message


@pytest.mark.parametrize(
    ("picture", "encoding", "names"),
    [
        (np.zeros((4, 4, 3), np.uint8), "mono8", r"\(4, 4, 3\)"),
        (np.zeros((4, 4), np.uint8), "rgb8", r"\(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), "rgb8", r"\(4, 4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), "rgb8", "float32"),
        (np.zeros((0, 4, 3), np.uint8), "rgb8", r"\(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.uint8), "bgr8", "'bgr8'; accepted: rgb8, mono8"),
    ],
)
def test_encode_names_what_does_not_fit(picture, encoding, names):
    with pytest.raises(ValueError, match=names):
        serialize_image(picture, encoding, Header())


def test_unpadded_rgb_is_not_copied():
    message = encode_image(np.zeros((4, 6, 3), np.uint8), "rgb8", Header())
    assert np.shares_memory(decode_image(message), np.frombuffer(message.data, np.uint8))


@pytest.mark.parametrize(
    "container", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)]
)
def test_takes_any_buffer(container):
    data = bytes(range(24))
    image = RawImage(2, 4, "bgr8", 0, 12, container(data))
    assert decode_image(image)[1, 3].tolist() == [23, 22, 21]


def test_decodes_what_went_over_the_wire():
    from rclpy.serialization import deserialize_message, serialize_message

    picture = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    sent = encode_image(picture, "rgb8", Header(frame_id="left"))
    received = deserialize_message(serialize_message(sent), Image)
    assert np.array_equal(decode_image(received), picture)
    assert received.header.frame_id == "left"


def test_decodes_messages_of_rosbags():
    from rclpy.serialization import serialize_message
    from rosbags.typesys import Stores, get_typestore

    picture = np.random.default_rng(2).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = bytes(serialize_message(encode_image(picture, "rgb8", Header())))
    message = get_typestore(Stores.ROS2_KILTED).deserialize_cdr(data, "sensor_msgs/msg/Image")
    assert np.array_equal(decode_image(message), picture)


# --- how numbers become 8 bits


@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
def test_16_bits_are_full_scale_and_rounded(encoding):
    values = np.arange(65536, dtype="<u2").reshape(256, 256)
    decoded = decode_image(RawImage(256, 256, encoding, 0, 512, values.tobytes()))
    assert np.array_equal(decoded[..., 0], np.rint(values / 257))
    assert decoded[0, 0, 0] == 0
    assert decoded[255, 255, 0] == 255


def float_image(values, *, bigendian=False):
    pixels = np.asarray(values, ">f4" if bigendian else "<f4")
    height, width = pixels.shape
    return RawImage(height, width, "32FC1", int(bigendian), width * 4, pixels.tobytes())


def test_floats_are_clipped_to_0_and_1():
    decoded = decode_image(float_image([[-0.25, 0.0, 0.5, 1.0, 1.75, 0.2]]))
    assert decoded[0, :, 0].tolist() == [0, 0, 128, 255, 255, 51]


def test_a_float_frame_does_not_depend_on_its_brightest_pixel():
    dim = decode_image(float_image([[0.1, 0.2, 0.3, 0.4]]))
    bright = decode_image(float_image([[0.1, 0.2, 0.3, 2.5]]))
    assert np.array_equal(dim[:, :3], bright[:, :3])


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.integers(0, 5),
    st.integers(0, 6),
    st.booleans(),
)
def test_one_non_finite_pixel_is_enough(value, row, column, bigendian):
    values = np.full((6, 7), 0.5)
    values[row, column] = value
    with pytest.raises(PictureError, match="1 of 42") as error:
        decode_image(float_image(values, bigendian=bigendian))
    assert error.value.reason == "non_finite"


def test_infinities_of_both_signs_do_not_cancel():
    with pytest.raises(PictureError, match="42 of 42") as error:
        decode_image(float_image(np.where(np.arange(42).reshape(6, 7) % 2, np.inf, -np.inf)))
    assert error.value.reason == "non_finite"


def test_non_finite_padding_is_not_looked_at():
    row = struct.pack("<ff", 0.5, float("nan"))
    assert decode_image(RawImage(2, 1, "32FC1", 0, 8, row * 2)).tolist() == [[[128] * 3]] * 2


@pytest.mark.parametrize("value", [1.5, 128.0, -0.5, 3.4e38, -3.4e38])
def test_floats_of_another_scale_are_refused(value):
    with pytest.raises(PictureError, match=r"accepted: 0\.0") as error:
        decode_image(float_image(np.full((4, 4), value)))
    assert error.value.reason == "out_of_range"


# --- against cv_bridge


@pytest.mark.parametrize(
    "encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "mono16", "uyvy", "yuyv", *BAYER]
)
def test_agrees_with_cv_bridge(encoding):
    cv_bridge = pytest.importorskip(
        "cv_bridge", reason="cv_bridge is not on PyPI; it comes with a ROS installation"
    )
    import cv2

    if int(cv2.__version__.partition(".")[0]) >= 5:
        pytest.skip("OpenCV 5 renumbered its types, which breaks cv_bridge's own table")
    width, height = 16, 12
    step = row_bytes(encoding, width)
    data = random.Random(3).randbytes(step * height)
    # cv_bridge knows the YUV encodings by their deprecated names only.
    named = {"uyvy": "yuv422", "yuyv": "yuv422_yuy2"}.get(encoding, encoding)
    bigendian = int(sys.byteorder == "big")
    theirs = Image(height=height, width=width, step=step, encoding=named, is_bigendian=bigendian)
    theirs.data = array.array("B", data)
    expected = cv_bridge.CvBridge().imgmsg_to_cv2(theirs, "rgb8")
    decoded = decode_image(RawImage(height, width, encoding, bigendian, step, data))
    assert np.abs(expected.astype(int) - decoded).max() <= 2
