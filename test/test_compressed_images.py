"""JPEG and PNG pictures: what they hold, what they claim to hold, and what is left of them."""

from __future__ import annotations

import struct
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header
from support.foreign_buffer import Buffer

from magicfuse_ros.ros.images.codec import decode_compressed, encode_compressed
from magicfuse_ros.sources.compressed_header import MAX_SCANS, CompressedHeader, read_header
from magicfuse_ros.sources.picture_errors import MAX_PIXELS, REASONS, PictureError

WIDTH, HEIGHT = 80, 48


def scene():
    """(HEIGHT, WIDTH, 3) uint8 RGB: smooth, with more red to the right and more blue below."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    red, green, blue = columns * 3, 60 + rows + columns // 2, rows * 5
    return np.stack([red, green, blue], axis=2).clip(0, 255).astype(np.uint8)


def compressed(data, form="jpeg"):
    message = CompressedImage(format=form)
    message.data.frombytes(bytes(data))
    return message


def jpeg_of(rgb, quality=95, *options):
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR) if rgb.ndim == 3 else rgb
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality, *options])[1].tobytes()


def png_of(pixels):
    return cv2.imencode(".png", pixels)[1].tobytes()


def with_jpeg_size(jpeg, width, height):
    """The JPEG with another size in its frame header."""
    at = next(at for kind in (b"\xff\xc0", b"\xff\xc2") if (at := jpeg.find(kind)) > 0)
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def with_png_size(png, width, height):
    """The PNG with another size in IHDR, and a checksum that fits it."""
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def forbid_decoding(monkeypatch):
    def decoder(*_, **__):
        raise AssertionError("the decoder was called")

    monkeypatch.setattr(cv2, "imdecode", decoder)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", decoder)


def reason_of(message):
    with pytest.raises(PictureError) as error:
        decode_compressed(message)
    assert len(str(error.value)) < 300
    return error.value.reason


# --- good pictures


@pytest.mark.parametrize(
    "form",
    [
        "jpeg",
        "jpg",
        "",
        "png",
        "rgb8; jpeg compressed bgr8",
        "rgb8; jpeg compressed rgb8",
        "bgr8; jpeg compressed bgr8",
        "bayer_rggb8; jpeg compressed bgr8",
        "JPEG; \u00e9\u4e2d;;;",
    ],
)
def test_red_stays_red_whatever_the_format_says(form):
    picture = scene()
    decoded = decode_compressed(compressed(jpeg_of(picture), form))
    assert decoded.shape == picture.shape
    assert decoded.flags.c_contiguous
    assert np.abs(decoded.astype(int) - picture).mean() < 3


@pytest.mark.parametrize(
    "options",
    [(cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)],
    ids=["progressive", "restart markers"],
)
def test_other_kinds_of_jpeg(options):
    decoded = decode_compressed(compressed(jpeg_of(scene(), 95, *options)))
    assert np.abs(decoded.astype(int) - scene()).mean() < 3


def test_a_grey_jpeg_becomes_rgb():
    grey = scene()[..., 1]
    decoded = decode_compressed(compressed(jpeg_of(grey), "mono8; jpeg compressed "))
    assert decoded.shape == (HEIGHT, WIDTH, 3)
    assert np.array_equal(decoded[..., 0], decoded[..., 2])
    assert np.abs(decoded[..., 0].astype(int) - grey).mean() < 2


def test_png_is_exact():
    png = png_of(cv2.cvtColor(scene(), cv2.COLOR_RGB2BGR))
    assert np.array_equal(decode_compressed(compressed(png, "rgb8; png compressed bgr8")), scene())


def test_alpha_of_a_png_is_dropped():
    bgra = np.dstack([cv2.cvtColor(scene(), cv2.COLOR_RGB2BGR), scene()[..., 0]])
    assert np.array_equal(decode_compressed(compressed(png_of(bgra))), scene())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_16_bit_png_is_full_scale_and_rounded(channels):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = decode_compressed(compressed(png_of(np.dstack([values] * channels).squeeze())))
    assert np.array_equal(decoded, np.dstack([np.rint(values / 257)] * 3))


def test_padding_after_the_end_is_ignored():
    jpeg = jpeg_of(scene())
    expected = decode_compressed(compressed(jpeg))
    assert np.array_equal(decode_compressed(compressed(jpeg + bytes(1000))), expected)


def test_an_orientation_tag_does_not_turn_the_picture():
    # An EXIF segment with nothing but Orientation = 6: "turn by 90 degrees to show it".
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0MM\0\x2a" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    jpeg = jpeg_of(scene())
    tagged = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    turned = cv2.imdecode(np.frombuffer(tagged, np.uint8), cv2.IMREAD_COLOR)
    assert turned.shape == (WIDTH, HEIGHT, 3), "the tag is not one that OpenCV follows"
    assert np.array_equal(
        decode_compressed(compressed(tagged)), decode_compressed(compressed(jpeg))
    )


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.lists(st.integers(0, 255), min_size=3, max_size=3)
)
@pytest.mark.parametrize("grey", [False, True])
def test_our_jpeg_comes_back(grey, width, height, color):
    # One colour: JPEG halves the resolution of colour, not its order or the size.
    picture = np.full((height, width, 3), color, np.uint8)
    picture = picture[..., 1] if grey else picture
    header = Header(frame_id="camera")
    message = encode_compressed(picture, header, 95)
    assert message.header == header
    # What compressed_image_transport's subscriber parses.
    assert message.format == (
        "mono8; jpeg compressed mono8" if grey else "rgb8; jpeg compressed bgr8"
    )
    expected = np.dstack([picture] * 3) if grey else picture
    assert np.abs(decode_compressed(message).astype(int) - expected).max() <= 4


def test_quality_is_used():
    low, high = (len(encode_compressed(scene(), Header(), quality).data) for quality in (5, 95))
    assert low < high


@pytest.mark.parametrize("quality", [0, 101, -1])
def test_quality_out_of_range_is_named(quality):
    with pytest.raises(ValueError, match=rf"{quality}; accepted: 1 to 100"):
        encode_compressed(scene(), Header(), quality)


def test_a_picture_beyond_jpeg_is_named():
    with pytest.raises(ValueError, match="accepted: up to 65500"):
        encode_compressed(np.zeros((1, 65501), np.uint8), Header(), 85)


# --- what the header says


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
def test_reads_the_size_of_a_jpeg(options):
    assert read_header(jpeg_of(scene(), 90, *options)) == CompressedHeader("jpeg", WIDTH, HEIGHT, 3)


def test_reads_the_size_of_a_png():
    assert read_header(png_of(scene())) == CompressedHeader("png", WIDTH, HEIGHT)


def test_a_thumbnail_is_not_the_picture():
    thumbnail = jpeg_of(scene()[:8, :8])
    jpeg = jpeg_of(scene())
    nested = jpeg[:2] + b"\xff\xe2" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + jpeg[2:]
    assert read_header(nested) == CompressedHeader("jpeg", WIDTH, HEIGHT, 3)
    cut_off = nested[: len(nested) * 3 // 4]
    assert b"\xff\xd9" in cut_off
    # OpenCV 5 refuses such a picture, OpenCV 4 fills it with grey: the header's reader must see it.
    with pytest.raises(PictureError, match="cut off"):
        read_header(cut_off)


@pytest.mark.parametrize(
    "bomb",
    [
        with_jpeg_size(jpeg_of(scene()), 65500, 65500),
        with_jpeg_size(jpeg_of(scene()), 8192, MAX_PIXELS // 8192 + 1),
        with_png_size(png_of(scene()), 2**31 - 1, 2**31 - 1),
        with_png_size(png_of(scene()), 2**32 - 1, 1),
    ],
    ids=["jpeg 65500 x 65500", "jpeg just too large", "png 2^31 x 2^31", "png 2^32 x 1"],
)
def test_a_bomb_is_refused_before_it_is_decoded(bomb, monkeypatch):
    forbid_decoding(monkeypatch)
    assert reason_of(compressed(bomb)) == "too_large"


def test_a_jpeg_of_countless_scans_is_refused_before_it_is_decoded(monkeypatch):
    jpeg = jpeg_of(scene(), 90, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    missing = MAX_SCANS - jpeg.count(b"\xff\xda")
    read_header(jpeg[:-2] + last * missing + jpeg[-2:])
    bomb = jpeg[:-2] + last * (missing + 1) + jpeg[-2:]

    forbid_decoding(monkeypatch)
    with pytest.raises(PictureError, match=f"{MAX_SCANS + 1} scans") as caught:
        decode_compressed(compressed(bomb))
    assert caught.value.reason == "corrupt_jpeg"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "short_data"),
        (b"\xff", "unknown_format"),
        (b"GIF89a" + bytes(100), "unknown_format"),
        (b"BM" + bytes(100), "unknown_format"),
        (b"\xff\xd8\xff", "corrupt_jpeg"),
        (b"\xff\xd8\xff\xd9" + bytes(9), "corrupt_jpeg"),
        (b"\xff\xd8" + b"\xff" * 1000, "corrupt_jpeg"),
        (b"\xff\xd8\xff\xe0\x00\x00" + bytes(50), "corrupt_jpeg"),
        (b"\xff\xd8\xff\xc0\x00\x0b\x08", "corrupt_jpeg"),
        (b"\xff\xd8\xff\xda\x00\x08" + bytes(50) + b"\xff\xd9", "corrupt_jpeg"),
        (b"\x89PNG\r\n\x1a\n", "corrupt_png"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "corrupt_png"),
        (with_jpeg_size(jpeg_of(scene()), 0, HEIGHT), "zero_size"),
        (with_jpeg_size(jpeg_of(scene()), WIDTH, 0), "zero_size"),
        (with_png_size(png_of(scene()), 0, 0), "zero_size"),
        (with_png_size(png_of(scene()), 640, 480), "corrupt_png"),
    ],
)
def test_bytes_that_are_no_picture(data, reason):
    assert reason_of(compressed(data)) == reason


def test_a_jpeg_in_a_gpus_memory_is_refused():
    message = SimpleNamespace(format="jpeg", data=Buffer(jpeg_of(scene())))
    with pytest.raises(PictureError, match="without acceptable_buffer_backends") as error:
        decode_compressed(message)
    assert error.value.reason == "unreadable_data"


def test_a_png_whose_chunk_announces_gigabytes_is_refused_before_it_is_decoded():
    png = png_of(scene())
    at = png.index(b"IDAT") - 4
    with pytest.raises(PictureError, match="announces 2147483647 bytes") as error:
        read_header(png[:at] + struct.pack(">I", 2**31 - 1) + png[at + 4 :])
    assert error.value.reason == "corrupt_png"


@pytest.mark.parametrize(
    ("form", "data", "names"),
    [
        (
            "16UC1; compressedDepth png",
            bytes(12) + png_of(np.zeros((4, 4), np.uint16)),
            "'16UC1; compressedDepth png', a depth picture",
        ),
        ("32FC1; compressedDepth", png_of(np.zeros((4, 4), np.uint16)), "a depth picture"),
        ("theora", b"\x80theora\3\2\1" + bytes(40), r"'theora', a piece of a video \(Theora\)"),
        ("h264", b"\0\0\0\1\x67" + bytes(40), r"'h264', a piece of a video \(H\.264 or H\.265\)"),
    ],
)
def test_another_transport_is_refused_by_name(form, data, names):
    with pytest.raises(PictureError, match=f"{names}; accepted: a JPEG or PNG") as error:
        decode_compressed(compressed(data, form))
    assert error.value.reason == "unknown_format"


# --- Bayer mosaics


def mosaic_of(rgb, pattern):
    """(H, W) of the picture's type: at each pixel the one colour that the camera sees there."""
    mosaic = np.empty(rgb.shape[:2], rgb.dtype)
    for at, color in enumerate(pattern):
        rows, columns = slice(at // 2, None, 2), slice(at % 2, None, 2)
        mosaic[rows, columns] = rgb[rows, columns, "rgb".index(color)]
    return mosaic


def halves():
    """(HEIGHT, WIDTH, 3) uint8: reddish on the left, bluish on the right."""
    picture = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    picture[:, : WIDTH // 2], picture[:, WIDTH // 2 :] = (200, 90, 40), (40, 90, 200)
    return picture


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize(
    "form",
    [
        "bayer_{}8; jpeg compressed bayer_{}8",
        "bayer_{}8; jpeg compressed ",  # compressed_image_transport
        "BAYER_{}8;jpeg",
        "bayer_{}8; png compressed bayer_{}8",
        "bayer_{}16; png compressed ",
    ],
)
def test_a_mosaic_gets_its_colours_back(form, pattern):
    mosaic = mosaic_of(halves(), pattern)
    if "16" in form:
        mosaic = mosaic.astype(np.uint16) * 257
    data = png_of(mosaic) if "png" in form else jpeg_of(mosaic)
    decoded = decode_compressed(compressed(data, form.format(pattern, pattern)))
    inner = np.s_[4:-4, 8 : WIDTH // 2 - 8]
    assert np.abs(decoded[inner].astype(int) - halves()[inner]).max() <= (
        0 if "png" in form else 12
    )
    inner = np.s_[4:-4, WIDTH // 2 + 8 : -8]
    assert np.abs(decoded[inner].astype(int) - halves()[inner]).max() <= (
        0 if "png" in form else 12
    )


def test_grey_made_of_a_mosaic_stays_grey():
    decoded = decode_compressed(
        compressed(jpeg_of(scene()[..., 1]), "bayer_rggb8; jpeg compressed mono8")
    )
    assert np.array_equal(decoded[..., 0], decoded[..., 2])


@pytest.mark.parametrize(
    ("form", "size", "reason"),
    [
        ("bayer_rggb8; png compressed ", (8, 2), "too_small"),
        ("bayer_rgbw8; png compressed ", (8, 8), "unknown_encoding"),
    ],
)
def test_a_mosaic_that_cannot_be_right_is_refused(form, size, reason):
    assert reason_of(compressed(png_of(np.zeros(size, np.uint8)), form)) == reason


# --- what is left of a good picture


@settings(max_examples=60, deadline=None)
@given(st.floats(0.0, 1.0, exclude_max=True))
def test_a_cut_off_jpeg_is_refused(share):
    jpeg = jpeg_of(scene())
    assert reason_of(compressed(jpeg[: int(share * (len(jpeg) - 1))])) in (
        "corrupt_jpeg",
        "short_data",
        "unknown_format",
    )


@settings(max_examples=60, deadline=None)
@given(st.floats(0.0, 1.0, exclude_max=True))
def test_a_cut_off_png_is_refused(share):
    png = png_of(scene())
    assert reason_of(compressed(png[: int(share * (len(png) - 12))])) in (
        "corrupt_png",
        "short_data",
        "unknown_format",
    )


@pytest.mark.parametrize("data", [jpeg_of(scene()), png_of(scene())], ids=["jpeg", "png"])
@settings(max_examples=100, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=8))
def test_a_damaged_picture_is_decoded_or_refused(data, changes):
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    try:
        decoded = decode_compressed(compressed(damaged))
    except PictureError as error:
        reason = error.reason
    else:
        reason = None
        assert decoded.dtype == np.uint8
        assert decoded.size == 3 * decoded.shape[0] * decoded.shape[1] <= 3 * MAX_PIXELS
    assert reason is None or reason in REASONS
