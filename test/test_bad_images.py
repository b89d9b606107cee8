"""Raw pictures whose header or data is wrong: each gets its reason, and none gets through."""

from __future__ import annotations

import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_reference import ALL, RawImage
from sensor_msgs.msg import Image
from support.foreign_buffer import Buffer

from magicfuse_ros.ros.images.codec import decode_image
from magicfuse_ros.sources.picture_errors import MAX_PIXELS, REASONS, PictureError


def message(**changes):
    good = {"height": 4, "width": 6, "encoding": "rgb8", "is_bigendian": 0, "step": 18}
    fields = {**good, "data": bytes(72), **changes}
    return RawImage(**fields)


BAD = {
    "zero height": (message(height=0), "zero_size", "6 x 0"),
    "zero width": (message(width=0), "zero_size", "0 x 4"),
    "nothing set": (message(height=0, width=0, step=0, data=b""), "zero_size", "0 x 0"),
    "2^31 x 2^31": (message(height=2**31, width=2**31), "too_large", str(MAX_PIXELS)),
    "2^32 - 1 rows": (message(height=2**32 - 1), "too_large", "4294967295"),
    "empty encoding": (message(encoding=""), "unknown_encoding", "accepted: rgb8"),
    "other encoding": (message(encoding="32FC3"), "unknown_encoding", "'32FC3'"),
    "other case": (message(encoding="RGB8"), "unknown_encoding", "'RGB8'"),
    "step 0": (message(step=0), "bad_step", "at least 18"),
    "step one short": (message(step=17), "bad_step", "17"),
    "no data": (message(data=b""), "short_data", "has 0 bytes"),
    "one byte short": (message(data=bytes(71)), "short_data", "at least 72"),
    "last row unpadded": (message(step=20, data=bytes(78)), "short_data", "at least 80"),
    "large but honest header": (message(height=5000, width=6000, step=18000), "short_data", "72"),
    "odd uyvy": (message(encoding="uyvy", width=5), "odd_size", "multiple of 2 x 1"),
    "odd yuyv": (message(encoding="yuyv", width=5), "odd_size", "multiple of 2 x 1"),
    "odd nv12 width": (message(encoding="nv12", width=5), "odd_size", "multiple of 2 x 2"),
    "odd nv21 height": (message(encoding="nv21", height=3), "odd_size", "multiple of 2 x 2"),
    "nv12 without chroma": (message(encoding="nv12", step=6, data=bytes(24)), "short_data", "36"),
    "flat mosaic": (message(encoding="bayer_rggb8", height=2), "too_small", "at least 3 x 3"),
    "a GPU's memory": (message(data=Buffer(bytes(72))), "unreadable_data", "backend 'cuda', which"),
    "no bytes": (message(data="pixels"), "unreadable_data", "builtins.str"),
    "16 bits in 8": (message(encoding="mono16", step=11), "bad_step", "at least 12"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_gets_its_reason(name):
    bad, reason, names = BAD[name]
    with pytest.raises(PictureError, match=names) as error:
        decode_image(bad)
    assert error.value.reason == reason
    assert "accepted" in str(error.value)
    assert len(str(error.value)) < 400


def test_a_long_encoding_does_not_flood_the_log():
    with pytest.raises(PictureError) as error:
        decode_image(message(encoding="x" * 100_000))
    assert len(str(error.value)) < 600


UINT32 = st.integers(0, 2**32 - 1)


@settings(max_examples=250, deadline=None)
@given(
    height=UINT32 | st.integers(0, 8),
    width=UINT32 | st.integers(0, 8),
    step=UINT32 | st.integers(0, 40),
    encoding=st.sampled_from([*ALL, "", "rgb16", "jpeg"]),
    is_bigendian=st.integers(0, 255),
    data=st.binary(max_size=300),
)
def test_any_header_is_decoded_or_refused(height, width, step, encoding, is_bigendian, data):
    image = Image(height=height, width=width, step=step, encoding=encoding)
    image.is_bigendian = is_bigendian
    image.data = array.array("B", data)
    try:
        decoded = decode_image(image)
    except PictureError as error:
        reason = error.reason
    else:
        reason = None
        assert decoded.shape == (height, width, 3)
        assert decoded.dtype == np.uint8
    assert reason is None or reason in REASONS
