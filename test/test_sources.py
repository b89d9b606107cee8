"""One reader for pictures, folders and videos: their times, their sizes, and what is damaged."""

import os
import struct

import cv2
import numpy as np
import pytest
from support.videos import UNEVEN, evenly, picture, write_video

from magicfuse_ros.sources import videos
from magicfuse_ros.sources.frame import SourceError
from magicfuse_ros.sources.source import open_source, result_names
from magicfuse_ros.sources.videos import Video


def times_s(source):
    return [frame.time_ns / 1e9 for frame in source.frames() if frame.rgb is not None]


def faults(source):
    return [frame.fault for frame in source.frames() if frame.rgb is None]


def shares(*values):
    return [pytest.param(value, id=f"{value:.0%}") for value in values]


# --- times and sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "exact_s"), [(".mp4", 1e-4), (".mkv", 1e-3), (".mov", 1e-4)])
def test_a_variable_frame_rate_keeps_its_times(tmp_path, suffix, exact_s):
    source = open_source(write_video(tmp_path / f"v{suffix}", UNEVEN))
    assert times_s(source) == pytest.approx(UNEVEN, abs=exact_s)
    assert faults(source) == []


def test_frames_come_in_the_order_they_are_shown(tmp_path):
    source = open_source(write_video(tmp_path / "v.mp4", evenly(30)))  # x264 reorders them
    brightness = [int(frame.rgb[..., 0].mean()) for frame in source.frames()]
    assert brightness == pytest.approx([5 * index for index in range(30)], abs=3)
    assert [frame.name for frame in source.frames()] == [f"{index:06d}" for index in range(30)]


@pytest.mark.parametrize("name", ["v.mkv", "v.avi"])
def test_a_rate_of_ones_own_repeats_and_leaves_out_but_keeps_the_speed(tmp_path, name):
    codec = "mjpeg" if name == "v.avi" else "libx264"
    video = open_source(write_video(tmp_path / name, evenly(24), codec=codec))
    assert (video.rate, video.count) == (12.0, 24)
    same, slower, faster = (video.at_rate(rate) for rate in (12, 4, 30))
    assert (same.count, slower.count, faster.count) == (24, 8, 60)
    for source in (same, slower, faster):
        assert times_s(source) == pytest.approx(evenly(source.count, source.rate), abs=1e-8)
    assert [frame.name for frame in same.frames()] == [f"{index:06d}" for index in range(24)]
    assert [frame.name for frame in slower.frames()] == [f"{3 * i:06d}" for i in range(8)]


def test_a_variable_rate_is_resampled_by_its_times(tmp_path):
    source = open_source(write_video(tmp_path / "v.mp4", UNEVEN)).at_rate(2)
    # 0, 0.5 s: in the fast part; from 0.67 s on the slow part has a frame each half second.
    names = [int(frame.name) for frame in source.frames()]
    assert names[:4] == [0, 15, 20, 21]
    assert len(names) == len(set(names)) == 22


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1001])
def test_an_odd_rate_or_size_is_told(tmp_path, rate):
    source = open_source(write_video(tmp_path / "v.mp4", evenly(3)))
    with pytest.raises(ValueError, match=r"fps .* accepted are"):
        source.at_rate(rate)
    with pytest.raises(ValueError, match=r"size .* accepted are"):
        source.of_size((0, 10))


def test_odd_sizes_stay_and_others_are_made(tmp_path):
    source = open_source(write_video(tmp_path / "v.mkv", evenly(3), codec="ffv1", size=(65, 49)))
    for index, frame in enumerate(source.frames()):
        assert np.array_equal(frame.rgb, picture(index, 65, 49))  # FFV1 loses nothing
    assert {frame.rgb.shape for frame in source.of_size((30, 20)).frames()} == {(20, 30, 3)}


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phones_video_is_turned_as_players_do(tmp_path, degrees):
    path = write_video(tmp_path / "v.mp4", evenly(3), rotation=degrees)
    ours = next(open_source(path).frames()).rgb
    player = cv2.VideoCapture(str(path)).read()[1][..., ::-1]
    assert ours.shape == player.shape == ((48, 64, 3) if degrees == 180 else (64, 48, 3))
    assert np.abs(ours.astype(int) - player).mean() < 4


# --- damage --------------------------------------------------------------------------------------

CONTAINERS = [
    pytest.param("v.mp4", "libx264", {"movflags": "faststart"}, id="mp4"),
    pytest.param("v.mkv", "libx264", {}, id="mkv"),
    pytest.param("v.avi", "mjpeg", {}, id="avi"),
]


@pytest.mark.parametrize(("name", "codec", "options"), CONTAINERS)
@pytest.mark.parametrize("kept", shares(0.6, 0.9, 0.97))
def test_a_video_that_is_cut_short_says_so(tmp_path, name, codec, options, kept):
    path = write_video(tmp_path / name, evenly(60), codec=codec, options=options)
    whole = open_source(path)
    assert (whole.count, len(times_s(whole)), faults(whole)) == (60, 60, [])
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    torn = open_source(path)
    assert 0 < len(times_s(torn)) < 60
    said = faults(torn)
    assert said
    assert all(str(path) in text for text in said)
    assert "cut short" in said[-1] or kept == 0.97


def test_a_video_without_its_index_is_refused(tmp_path):
    path = write_video(tmp_path / "v.mp4", evenly(30))  # what MP4 is read by stands at its end
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SourceError, match=r"v\.mp4 cannot be read as a video; it is damaged"):
        open_source(path)


@pytest.mark.parametrize(("name", "codec", "options"), CONTAINERS)
def test_damage_inside_is_a_fault_and_the_rest_is_read(tmp_path, name, codec, options):
    path = write_video(tmp_path / name, evenly(60), codec=codec, options=options)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = np.random.default_rng(3).bytes(300)
    path.write_bytes(content)
    source = open_source(path)
    assert faults(source)
    assert len(times_s(source)) > 20


def test_a_trimmed_video_is_not_called_cut(tmp_path):
    """Phones trim by an edit list: the file holds more frames than it shows."""
    path = write_video(tmp_path / "v.mp4", evenly(60))
    content = bytearray(path.read_bytes())
    at = content.find(b"elst") + 12
    struct.pack_into(">I", content, at, struct.unpack_from(">I", content, at)[0] // 2)
    path.write_bytes(content)
    source = open_source(path)
    assert len(times_s(source)) < 50
    assert faults(source) == []


def test_playlists_and_text_are_no_videos(tmp_path):
    write_video(tmp_path / "v.mp4", evenly(3))
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile v.mp4\n")
    (tmp_path / "list.mkv").write_text("#EXTM3U\n#EXTINF:1,\nv.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "notes.txt").write_text("notes\n" * 100)
    for name in ("list.mp4", "list.mkv", "notes.txt"):
        with pytest.raises(SourceError, match=f"{name} cannot be read as a video"):
            open_source(tmp_path / name)


def test_without_pyav_the_package_to_install_is_named(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", evenly(3))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(SourceError, match="pip install av"):
        Video(path)
    assert "pip install av" in videos.NEEDS_AV


# --- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.jpg", "b.png"], ["a", "b"]),
        (["a.jpg", "a.png"], ["a.jpg", "a.png"]),
        (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg", "a.png", "a.jpg.png"]),
        (["a.jpg.png", "a.jpg"], ["a.jpg", "a"]),
        (["A.jpg", "a.png"], ["A.jpg", "a.png"]),
        (["a.png", "a.jpg", "a.jpg.png", "a.jpg.png.bmp"], None),
    ],
)
def test_no_two_pictures_share_a_name(tmp_path, files, names):
    named = result_names([tmp_path / file for file in files])
    assert len({name.casefold() for name in named}) == len(files)
    assert names in (None, named)


def test_a_folder_ignores_what_is_no_picture_of_it(tmp_path):
    for name in ("f10.png", "f2.png", "f1.PNG"):
        cv2.imwrite(str(tmp_path / name), picture(0))
    (tmp_path / "._f1.PNG").write_bytes(b"\x00\x05\x16\x07" + bytes(100))  # macOS's own
    (tmp_path / "notes.txt").touch()
    source = open_source(tmp_path)
    assert [frame.name for frame in source.frames()] == ["f1", "f2", "f10"]
    assert source.names == ("f1", "f2", "f10")
    assert times_s(source) == [0.0, 0.1, 0.2]
    assert times_s(source.at_rate(2)) == [0.0, 0.5, 1.0]


def exif(orientation):
    tags = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return b"\xff\xe1" + struct.pack(">H", 8 + len(tags)) + b"Exif\0\0" + tags


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_photo_is_turned_as_its_tag_says(tmp_path, orientation, turns):
    jpeg = cv2.imencode(".jpg", picture(20)[..., ::-1])[1].tobytes()
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + exif(orientation) + jpeg[2:])
    frame = next(open_source(tmp_path / "a.jpg").frames())
    expected = np.rot90(picture(20), turns)
    assert frame.rgb.shape == expected.shape
    assert np.abs(frame.rgb.astype(int) - expected).mean() < 6  # JPEG; turned wrongly it is 30


def test_a_picture_that_is_cut_is_a_fault_that_names_it(tmp_path):
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (90, 120, 3)))[1]
    (tmp_path / "good.jpg").write_bytes(jpeg.tobytes())
    (tmp_path / "cut.jpg").write_bytes(jpeg.tobytes()[: len(jpeg) // 2])
    source = open_source(tmp_path)
    assert [frame.name for frame in source.frames() if frame.rgb is not None] == ["good"]
    assert str(tmp_path / "cut.jpg") in faults(source)[0]
    with pytest.raises(SourceError, match=r"cut\.jpg"):
        open_source(tmp_path / "cut.jpg")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none.mp4", "does not exist; give a picture, a folder of pictures or a video"),
        ("empty", "holds no pictures .* subfolders are not searched"),
        ("torn.png", r"torn\.png is not a readable picture"),
        ("torn.mp4", r"torn\.mp4 cannot be read as a video"),
        ("torn.bin", r"torn\.bin cannot be read as a video.*; .*torn\.bin is not a readable pict"),
        ("pipe", "is no file"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, name, text):
    (tmp_path / "empty").mkdir()
    for each in ("torn.png", "torn.mp4", "torn.bin"):
        (tmp_path / each).write_bytes(b"\x89PNG\r\n\x1a\n")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match=text):
        open_source(tmp_path / name)


def test_a_picture_of_another_name_is_still_a_picture(tmp_path):
    (tmp_path / "shot").write_bytes(cv2.imencode(".png", picture(3)[..., ::-1])[1].tobytes())
    source = open_source(tmp_path / "shot")
    assert (source.kind, source.names) == ("image", ("shot",))
    assert np.array_equal(next(source.frames()).rgb, picture(3))
