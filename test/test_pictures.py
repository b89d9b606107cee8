"""Pictures from bytes, files and folders: healthy ones of every kind, and damage that is told."""

from __future__ import annotations

import io
import random
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from magicfuse_ros.sources.picture_errors import MAX_PIXELS, PictureError
from magicfuse_ros.sources.pictures import (
    PICTURE_SUFFIXES,
    decode_jpeg_or_png,
    decode_picture,
    picture_files,
    read_picture,
    to_rgb8,
)

WIDTH, HEIGHT = 150, 101  # no multiple of a JPEG's blocks


def street():
    """(H, W, 3) uint8 RGB with edges, gradients and a little noise, as a camera sees it."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    picture = np.dstack([columns + 40, rows * 2, 255 - columns // 2 - rows // 2]).clip(0, 255)
    picture[30:70, 20:60] = 20, 30, 40
    picture[rows * 3 < columns] = 200, 210, 220
    return np.uint8(
        (picture + np.random.default_rng(7).integers(-4, 5, picture.shape)).clip(0, 255)
    )


def pillow(kind, picture=None, mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(street() if picture is None else picture).convert(mode).save(
        file, kind, **options
    )
    return file.getvalue()


def opencv(suffix, picture, *options):
    done, data = cv2.imencode(suffix, picture, options)
    assert done
    return data.tobytes()


BGR = cv2.cvtColor(street(), cv2.COLOR_RGB2BGR)


def sampled(factor):
    return opencv(".jpg", BGR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor)


def without_segments(jpeg, *markers):
    """The JPEG without the header segments of these markers."""
    kept, at = jpeg[:2], 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + struct.unpack_from(">H", jpeg, at + 2)[0]
        if jpeg[at + 1] not in markers:
            kept += jpeg[at:end]
        at = end
    return kept + jpeg[at:]


def scan_start(jpeg):
    at = jpeg.index(b"\xff\xda")
    return at + 2 + struct.unpack_from(">H", jpeg, at + 2)[0]


def before(jpeg, marker, padding):
    at = jpeg.index(marker, scan_start(jpeg))
    return jpeg[:at] + padding + jpeg[at:]


JPEG = pillow("jpeg", quality=85)
RESTARTS = opencv(".jpg", BGR, cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_RST_INTERVAL, 4)
PROGRESSIVE = pillow("jpeg", quality=85, progressive=True)

HEALTHY_JPEGS = {
    "4:2:0": JPEG,
    "4:2:2": sampled(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422),
    "4:4:4": sampled(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    "4:4:0": sampled(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440),
    "4:1:1": sampled(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411),
    "stored as RGB": pillow("jpeg", quality=85, keep_rgb=True),
    "progressive": PROGRESSIVE,
    "optimised tables": pillow("jpeg", quality=85, optimize=True),
    "restart markers": RESTARTS,
    "EXIF and ICC": pillow(
        "jpeg", quality=85, exif=b"Exif\0\0" + bytes(9), icc_profile=bytes(9000)
    ),
    "a comment, no JFIF": without_segments(pillow("jpeg", quality=85, comment=b"\xff\xd9"), 0xE0),
    "no Huffman tables, as in MJPEG": without_segments(JPEG, 0xC4),
    "fill bytes before a marker": JPEG[:2] + b"\xff" * 7 + JPEG[2:],
    "fill bytes before the end": before(JPEG, b"\xff\xd9", b"\xff\xff"),
    "zeros before the end": before(JPEG, b"\xff\xd9", bytes(4)),
    "a byte before a restart": before(RESTARTS, b"\xff\xd2", b"\0"),
    "zeros after the end": JPEG + bytes(2000),
    "old bytes after the end": JPEG + JPEG[scan_start(JPEG) :],
    "ff after the end": JPEG + b"\xff" * 300,
}


@pytest.mark.parametrize("name", HEALTHY_JPEGS)
def test_a_healthy_jpeg_is_taken(name):
    decoded = decode_picture(HEALTHY_JPEGS[name])

    assert decoded.shape == (HEIGHT, WIDTH, 3)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - street()).mean() < 9


def test_a_grey_jpeg_stays_grey():
    decoded = decode_picture(pillow("jpeg", mode="L", quality=90))
    assert decoded.shape == (HEIGHT, WIDTH)
    assert np.array_equal(to_rgb8(decoded), np.dstack([decoded] * 3))


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 8), (17, 33)])
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_any_size(kind, size):
    width, height = size
    picture = np.full((height, width, 3), (200, 60, 90), np.uint8)
    decoded = decode_picture(pillow(kind, picture))
    assert decoded.shape == picture.shape
    assert np.abs(decoded.astype(int) - picture).max() <= 3


def jpeg_with(offset, value):
    """The JPEG with another byte in its frame header."""
    data = bytearray(JPEG)
    data[JPEG.index(b"\xff\xc0") + offset] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (pillow("jpeg", mode="CMYK"), "4 components, such as CMYK.*convert it to RGB"),
        (jpeg_with(4, 12), "precision 12.*accepted: 8 bits"),
        (jpeg_with(11, 0x31), "subsampling"),
        (b"GIF89a" + bytes(99), "starts with the bytes 47 49 46 38"),
        (opencv(".tif", BGR.astype(np.float32)), "float32; accepted: 8 or 16 bits"),
    ],
    ids=["CMYK", "12 bits", "3:1 chroma", "GIF", "float TIFF"],
)
def test_a_kind_that_is_not_read_is_named(data, names):
    with pytest.raises(PictureError, match=names) as caught:
        decode_picture(data)
    assert caught.value.reason == "unknown_format"


# --- damage


def lost(data, at, count):
    return data[:at] + data[at + count :]


def zeroed(data, at, count):
    return data[:at] + bytes(count) + data[at + count :]


@pytest.mark.parametrize("jpeg", [JPEG, RESTARTS, PROGRESSIVE], ids=["plain", "restarts", "scans"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data, middle: data[:middle],
        lambda data, middle: data[:middle] + b"\xff\xd9",
        lambda data, middle: data[:middle] + bytes(500) + b"\xff\xd9",
        lambda data, middle: lost(data, middle, 600),
        lambda data, middle: zeroed(data, middle, 400),
        lambda data, _: data[:-2],
    ],
    ids=["cut", "cut with an end", "cut and padded", "600 B lost", "400 B zeroed", "no end"],
)
def test_a_damaged_jpeg_is_refused(jpeg, damage):
    with pytest.raises(PictureError) as caught:
        decode_picture(damage(jpeg, len(jpeg) // 2))
    assert caught.value.reason == "corrupt_jpeg"


@pytest.mark.parametrize("jpeg", [JPEG, RESTARTS, PROGRESSIVE], ids=["plain", "restarts", "scans"])
def test_random_damage_is_seen(jpeg):
    """What leaves a valid code cannot be seen; that is rare where a network packet is missing."""
    content = random.Random(1)
    start, reasons = scan_start(jpeg), []
    for _ in range(300):
        damage, at = content.choice([lost, zeroed]), content.randrange(start, len(jpeg) - 520)
        try:
            decode_picture(damage(jpeg, at, 512))
        except PictureError as error:
            reasons.append(error.reason)
    assert set(reasons) == {"corrupt_jpeg"}
    assert len(reasons) >= 295


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_a_png_with_one_wrong_bit_is_refused():
    png = pillow("png")
    content = random.Random(2)
    for _ in range(100):
        damaged = bytearray(png)
        damaged[content.randrange(8, len(png))] ^= 1 << content.randrange(8)
        with pytest.raises(PictureError) as caught:
            decode_picture(bytes(damaged))
        assert caught.value.reason == "corrupt_png"


def test_damage_to_the_text_of_a_png_does_no_harm():
    png = pillow("png")
    text = bytearray(chunk(b"tEXt", b"Comment\0camera"))
    text[-1] ^= 1
    assert np.array_equal(decode_picture(png[:33] + bytes(text) + png[33:]), street())


@pytest.mark.parametrize(
    ("rows", "names"),
    [(b"\0" + bytes(12), "cannot be decoded"), (b"\7" + bytes(12) + b"\0" * 13, "be decoded")],
    ids=["a row is missing", "no such filter"],
)
def test_a_png_of_wrong_pixels_with_right_checksums_is_refused(rows, names):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 2, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    with pytest.raises(PictureError, match=names) as caught:
        decode_picture(b"\x89PNG\r\n\x1a\n" + header + data)
    assert caught.value.reason == "corrupt_png"


OTHERS = {suffix: opencv(suffix, BGR) for suffix in (".bmp", ".ppm", ".tif")}
OTHERS |= {".webp": pillow("webp", lossless=True)}


@pytest.mark.parametrize("suffix", OTHERS)
def test_other_kinds_of_files_are_read_and_refused_when_cut(suffix):
    data = OTHERS[suffix]
    assert np.array_equal(decode_picture(data), street())
    with pytest.raises(PictureError) as caught:
        decode_picture(data[: len(data) // 2])
    assert caught.value.reason == "corrupt_picture"
    with pytest.raises(PictureError) as caught:  # cameras send JPEG and PNG
        decode_jpeg_or_png(data)
    assert caught.value.reason == "unknown_format"


# --- depth and channels


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_kept(suffix, channels):
    values = np.random.default_rng(3).integers(0, 65536, (9, 5, channels), np.uint16).squeeze()
    stored = values if channels == 1 else np.ascontiguousarray(values[..., ::-1])
    decoded = decode_picture(opencv(suffix, stored))
    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded, values)
    grey = values[..., None] if channels == 1 else values
    assert np.array_equal(to_rgb8(decoded), np.broadcast_to(np.rint(grey / 257), (9, 5, 3)))


def test_alpha_is_kept_and_dropped_for_rgb():
    rgba = np.dstack([street(), street()[..., 0]])
    decoded = decode_picture(pillow("png", rgba, mode="RGBA"))
    assert np.array_equal(decoded, rgba)
    assert np.array_equal(to_rgb8(decoded), street())


def test_a_palette_becomes_rgb():
    image = Image.fromarray(street()).quantize(16)
    file = io.BytesIO()
    image.save(file, "png")
    assert np.array_equal(decode_picture(file.getvalue()), np.asarray(image.convert("RGB")))


def test_an_orientation_tag_turns_nothing():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show it
    for kind in ("jpeg", "png", "webp"):
        assert decode_picture(pillow(kind, exif=exif)).shape == (HEIGHT, WIDTH, 3)


# --- files and folders


def test_a_file_is_named_with_what_is_wrong(tmp_path):
    whole, cut, missing = tmp_path / "whole.png", tmp_path / "cut.jpg", tmp_path / "no.jpg"
    whole.write_bytes(JPEG)  # the bytes decide, not the name
    cut.write_bytes(JPEG[: len(JPEG) // 2])
    assert read_picture(whole).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(PictureError, match=r"cut\.jpg is not a readable picture: .*cut off"):
        read_picture(cut)
    for path in (missing, tmp_path):
        with pytest.raises(PictureError, match=f"{path.name} cannot be read: ") as caught:
            read_picture(path)
        assert caught.value.reason == "unreadable"


def test_a_file_of_absurd_size_is_refused(tmp_path):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8192, MAX_PIXELS // 8192 + 1, 8, 2, 0, 0, 0))
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(PictureError, match=r"bomb\.png .*accepted: up to") as caught:
        read_picture(bomb)
    assert caught.value.reason == "too_large"


def test_a_folder_gives_its_pictures_in_natural_order(tmp_path):
    (tmp_path / "sub.png").mkdir()
    for name in ("b10.jpg", "b2.PNG", "a.tiff", "._a.jpg", ".hidden.png", "notes.txt", "x.webp"):
        (tmp_path / name).touch()
    names = [file.name for file in picture_files(tmp_path)]
    assert names == ["a.tiff", "b2.PNG", "b10.jpg", "x.webp"]
    assert all(file.suffix.lower() in PICTURE_SUFFIXES for file in picture_files(tmp_path))


def test_a_folder_without_pictures_is_named(tmp_path):
    (tmp_path / "._a.jpg").touch()
    for folder, reason in ((tmp_path, "no_pictures"), (tmp_path / "gone", "unreadable")):
        with pytest.raises(PictureError, match=f"folder {folder} ") as caught:
            picture_files(folder)
        assert caught.value.reason == reason
