"""Cameras that fill 10, 12 or 14 of the 16 bits: the scale that is set, and the hint to set it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from image_reference import RawImage
from sensor_msgs.msg import CompressedImage

from magicfuse_ros.ros.images.bit_depth import BitDepth
from magicfuse_ros.ros.images.codec import decode_compressed, decode_image


def ramp(bits):
    """(4, 64) uint16 from 0 to the brightest number of so many bits."""
    return np.tile(np.linspace(0, 2**bits - 1, 64), (4, 1)).astype(np.uint16)


def raw(pixels, encoding="mono16", *, bigendian=False):
    data = pixels.astype(">u2" if bigendian else "<u2").tobytes()
    height, width = pixels.shape
    return RawImage(height, width, encoding, int(bigendian), 2 * width, data)


def png(pixels, form="mono16; png compressed "):
    message = CompressedImage(format=form)
    message.data.frombytes(cv2.imencode(".png", pixels)[1].tobytes())
    return message


@pytest.mark.parametrize("bits", range(8, 17))
@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
@pytest.mark.parametrize("bigendian", [False, True])
def test_the_brightest_number_is_white(bits, encoding, bigendian):
    decoded = decode_image(raw(ramp(bits), encoding, bigendian=bigendian), BitDepth(bits))
    expected = np.rint(255.0 * ramp(bits) / (2**bits - 1))
    assert np.array_equal(decoded, np.dstack([expected] * 3))
    assert np.array_equal(decode_compressed(png(ramp(bits)), BitDepth(bits)), decoded)


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_mosaic_of_12_bits_is_not_dark(pattern):
    grey = np.full((6, 8), 4095, np.uint16)
    for decoded in (
        decode_image(raw(grey, f"bayer_{pattern}16"), BitDepth(12)),
        decode_compressed(png(grey, f"bayer_{pattern}16; png compressed "), BitDepth(12)),
    ):
        assert (decoded == 255).all()


def test_what_lies_above_white_is_white():
    decoded = decode_image(raw(np.array([[4096, 65535]], np.uint16)), BitDepth(12))
    assert (decoded == 255).all()


def test_8_bit_pictures_do_not_depend_on_it():
    image = RawImage(1, 2, "mono8", 0, 2, bytes([7, 200]))
    assert np.array_equal(decode_image(image, BitDepth(12)), decode_image(image))


@pytest.mark.parametrize("bits", [-1, 1, 7, 17])
def test_other_depths_are_refused(bits):
    with pytest.raises(ValueError, match=f"{bits} bits: accepted are 8 to 16"):
        BitDepth(bits)


def watched(*frames, bits=0):
    """A depth that has seen 30 frames, the given ones in turn."""
    depth = BitDepth(bits)
    for index in range(30):
        assert depth.hint() == "", "too early"
        depth.to_8_bits(frames[index % len(frames)])
    return depth


@pytest.mark.parametrize(
    ("used", "told"), [(8, 8), (9, 10), (10, 10), (11, 12), (12, 12), (13, 14), (14, 14)]
)
def test_unused_bits_are_noticed(used, told):
    hint = watched(ramp(used), ramp(8)).hint()
    assert f"above {2**told - 1} so far" in hint
    assert f"set input_bits to {told}" in hint


@pytest.mark.parametrize("frames", [(ramp(16),), (ramp(15),), (ramp(12), ramp(16)), (0 * ramp(8),)])
def test_a_camera_that_fills_its_bits_is_left_alone(frames):
    assert watched(*frames).hint() == ""


def test_the_hint_goes_with_the_first_bright_frame():
    depth = watched(ramp(12))
    assert depth.hint()
    depth.to_8_bits(ramp(16))
    assert depth.hint() == ""


@pytest.mark.parametrize("bits", [12, 16])
def test_who_has_set_it_is_not_told(bits):
    assert watched(ramp(10), bits=bits).hint() == ""
