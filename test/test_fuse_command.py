"""`magicfuse fuse`: images, folders and videos in, files out; what goes wrong is told."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.noop_node import NoopEngine
from support.small_models import SMALL_FEW_STEP
from support.videos import UNEVEN, evenly, write_video

from magicfuse_ros import cli
from magicfuse_ros.commands import fuse, fuse_session
from magicfuse_ros.commands.exit_status import Stopped
from magicfuse_ros.commands.fuse import OUTPUTS
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.runtime.engine import EXTRAS, EngineSettings, load_engine
from magicfuse_ros.sources.source import open_source

GREY = ("infrared", "mask", "confidence")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "small"
    MagicFuse.from_config(SMALL_FEW_STEP).save_pretrained(path)
    return str(path)


@pytest.fixture
def magicfuse(model, monkeypatch, capsys):
    """Run the command line on the small model; returns (status, standard output, errors)."""
    monkeypatch.setattr(cli, "COMMANDS", {"fuse": "fuse"})

    def run(*arguments):
        if "--model" not in arguments:
            arguments = (*arguments, "--model", model)
        try:
            status = cli.main(["fuse", *map(str, arguments)])
        except SystemExit as leave:
            status = leave.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def noop(monkeypatch):
    """An engine that computes nothing: MagImg is the frame; returns the settings of each load."""
    loaded = []

    def load(settings, progress):
        loaded.append(settings)
        return NoopEngine(settings, progress)

    monkeypatch.setattr(fuse_session, "load_engine", load)
    return loaded


def scene(height=60, width=80, shift=0):
    """A (H, W, 3) BGR picture."""
    rows, columns = np.mgrid[:height, :width]
    blocks = ((rows + shift) // 9 + columns // 13) % 3
    return np.stack([blocks * 60 + 40, columns * 2, rows * 3], -1).astype(np.uint8)


def write(path, picture):
    assert cv2.imwrite(str(path), picture)
    return path


def read(path):
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert picture is not None, path
    return picture


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "street.avi", evenly(5), codec="mjpeg", size=(80, 60))


def frames(path):
    return [frame for frame in open_source(path).frames() if frame.rgb is not None]


def test_an_image_into_an_image_is_what_the_engine_makes(magicfuse, model, tmp_path):
    source = write(tmp_path / "night.png", scene())
    target = tmp_path / "new" / "fused.png"
    status, out, err = magicfuse(source, target, "--outputs", ",".join(OUTPUTS))

    assert status == 0
    assert "1 fused into" in out
    assert "openvino on cpu" in out
    assert "untrained" in err
    beside = sorted(f"fused_{name}.png" for name in OUTPUTS[1:])
    assert written(target.parent) == sorted(["fused.png", *beside])
    engine = load_engine(EngineSettings(model=model, device="cpu"), lambda _: None)
    expected = engine.fuse(scene()[:, :, ::-1], frozenset(EXTRAS))
    assert np.array_equal(read(target)[:, :, ::-1], expected.magimg)
    for name in (*GREY, "enhanced"):
        picture = read(target.with_name(f"fused_{name}.png"))
        picture = picture if name in GREY else picture[:, :, ::-1]
        assert np.array_equal(picture, getattr(expected, name)), name


def test_color_paints_the_classes_over_magimg(magicfuse, tmp_path):
    source = write(tmp_path / "night.png", scene())
    assert magicfuse(source, tmp_path / "out", "--outputs", "color,mask,magimg")[0] == 0
    color, mask, magimg = (
        read(tmp_path / "out" / name / "night.png") for name in ("color", "mask", "magimg")
    )
    palette = np.array(LabelSet.load(SMALL_FEW_STEP.labels).palette())
    painted = palette.any(axis=1)[mask]
    expected = magimg.astype(int)
    expected[painted] = (expected + palette[mask][:, :, ::-1])[painted] / 2
    assert np.abs(color - expected).max() <= 1


def test_a_folder_keeps_the_names_and_the_sizes(magicfuse, noop, tmp_path):
    source = tmp_path / "in"
    (source / "deeper").mkdir(parents=True)
    write(source / "a.png", scene(60, 80))
    write(source / "b.JPG", scene(33, 47))
    write(source / "same.png", scene(40, 40))
    write(source / "same.bmp", scene(40, 40))
    write(source / "grey.pgm", scene(20, 90)[:, :, 0])
    write(source / "deep.png", scene().astype(np.uint16) * 257)
    write(source / "deeper" / "not_this.png", scene())
    (source / "notes.txt").write_text("not an image")

    status, out, _ = magicfuse(source, tmp_path / "out")

    assert status == 0
    assert "6 fused" in out
    names = ["a.png", "b.png", "deep.png", "grey.png", "same.bmp.png", "same.png.png"]
    assert written(tmp_path / "out") == [
        f"{output}/{name}" for output in ("magimg", "mask") for name in names
    ]
    assert read(tmp_path / "out" / "magimg" / "b.png").shape == (33, 47, 3)
    assert read(tmp_path / "out" / "mask" / "grey.png").shape == (20, 90)
    # 16 bits or 8, it is the same scene.
    assert np.array_equal(
        read(tmp_path / "out" / "magimg" / "deep.png"), read(tmp_path / "out" / "magimg" / "a.png")
    )


def test_three_pictures_give_three_results_whatever_they_are_called(magicfuse, noop, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for index, name in enumerate(("a.jpg", "a.png", "a.jpg.png")):
        write(source / name, np.full((60, 80, 3), 60 * index + 40, np.uint8))
    (source / "._a.jpg").write_bytes(b"\x00\x05\x16\x07" + bytes(100))  # macOS leaves these
    status, out, err = magicfuse(source, tmp_path / "out", "--outputs", "magimg")
    assert (status, err) == (0, "")
    assert "3 fused" in out
    tones = {name: int(read(tmp_path / "out" / name).mean()) for name in written(tmp_path / "out")}
    assert tones == {"magimg/a.jpg.png": 40, "magimg/a.png.png": 100, "magimg/a.jpg.png.png": 160}


def test_images_that_cannot_be_read_are_left_out_and_told(magicfuse, noop, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    write(source / "good.png", scene())
    (source / "torn.png").write_bytes((source / "good.png").read_bytes()[:40])
    (source / "empty.jpg").touch()
    write(source / "cut.jpg", scene(240, 320))
    (source / "cut.jpg").write_bytes((source / "cut.jpg").read_bytes()[:3000])

    status, out, err = magicfuse(source, tmp_path / "out")

    assert status == 1
    assert "1 fused" in out
    assert "3 left out" in out
    for name in ("torn.png", "empty.jpg", "cut.jpg"):
        assert re.search(f"^left out: .*{name} is not a readable picture", err, re.MULTILINE)
    assert written(tmp_path / "out") == ["magimg/good.png", "mask/good.png"]


def test_a_video_into_a_folder(magicfuse, noop, video, tmp_path):
    status, out, _ = magicfuse(video, tmp_path / "out", "--outputs", "magimg")
    assert status == 0
    assert "5 fused" in out
    assert written(tmp_path / "out") == [f"magimg/{index:06d}.png" for index in range(5)]


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_a_video_into_a_video(magicfuse, noop, video, tmp_path, suffix):
    target = tmp_path / "out" / f"fused{suffix}"
    assert magicfuse(video, target, "--outputs", "magimg,infrared,mask")[0] == 0

    names = [f"fused_mask/{index:06d}.png" for index in range(5)]
    assert written(tmp_path / "out") == sorted([target.name, f"fused_infrared{suffix}", *names])
    for path in (target, target.with_name(f"fused_infrared{suffix}")):
        played = cv2.VideoCapture(str(path))
        assert played.get(cv2.CAP_PROP_FPS) == pytest.approx(12.0, abs=0.01)
        count = 0
        while True:
            ok, frame = played.read()
            if not ok:
                break
            assert frame.shape == (60, 80, 3)
            count += 1
        assert count == 5
    for before, after in zip(frames(video), frames(target), strict=True):
        assert np.abs(before.rgb.astype(int) - after.rgb).mean() < 8  # chroma at half resolution


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov"])
def test_an_odd_size_stays_in_video_and_mask(magicfuse, noop, tmp_path, suffix):
    video = write_video(tmp_path / "odd.mkv", evenly(3), codec="ffv1", size=(641, 481))
    assert magicfuse(video, tmp_path / f"out{suffix}")[0] == 0
    assert read(tmp_path / "out_mask" / "000000.png").shape == (481, 641)
    assert cv2.VideoCapture(str(tmp_path / f"out{suffix}")).read()[1].shape == (481, 641, 3)


def test_a_variable_frame_rate_stays_one(magicfuse, noop, tmp_path):
    video = write_video(tmp_path / "vfr.mp4", UNEVEN)
    assert magicfuse(video, tmp_path / "out.mkv", "--outputs", "magimg")[0] == 0
    times_s = [frame.time_ns / 1e9 for frame in frames(tmp_path / "out.mkv")]
    assert times_s == pytest.approx(UNEVEN, abs=1e-3)
    # AVI has one rate: it is refused rather than written with wrong times.
    status, _, err = magicfuse(video, tmp_path / "out.avi", "--outputs", "magimg")
    assert status == 2
    assert "out.avi cannot be written" in err
    assert "ends in .mp4 or .mkv" in err
    assert not (tmp_path / "out.avi").exists()


def test_a_turned_video_gives_turned_results(magicfuse, noop, tmp_path):
    video = write_video(tmp_path / "phone.mp4", evenly(2), rotation=90)
    assert magicfuse(video, tmp_path / "out.mp4")[0] == 0
    assert read(tmp_path / "out_mask" / "000000.png").shape == (64, 48)
    assert frames(tmp_path / "out.mp4")[0].rgb.shape == (64, 48, 3)


def test_a_video_that_is_cut_short_gives_what_there_is_and_says_so(
    magicfuse, noop, video, tmp_path
):
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    status, out, err = magicfuse(video, tmp_path / "out")
    assert status == 1
    assert "left out" in out
    assert re.search("left out: .*street.avi is cut short after . frames", err)
    assert 1 <= len(written(tmp_path / "out" / "magimg")) < 5


def test_the_same_command_gives_the_same_files(magicfuse, tmp_path):
    source = write(tmp_path / "night.png", scene())
    for name in ("one", "two"):
        magicfuse(source, tmp_path / name)
    magicfuse(source, tmp_path / "other", "--seed", 5, "--steps", 3, "--tau", 0.9)
    first, second, other = (
        (tmp_path / name / "magimg" / "night.png").read_bytes() for name in ("one", "two", "other")
    )
    assert first == second != other


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["missing.png", "out"], "missing.png does not exist; give a picture"),
        (["torn.png", "out"], "torn.png is not a readable picture: "),
        (["torn.mp4", "out"], "torn.mp4 cannot be read as a video; it is damaged"),
        (["notes.txt", "out"], "notes.txt cannot be read as a video.* not a readable picture"),
        (["empty", "out"], "folder .*empty holds no pictures .*subfolders are not"),
        (["torn", "out"], "none of the 1 pictures in .*torn can be read"),
        (["good.png", "out.mp4"], "ends in .mp4, but INPUT is of the kind image; accepted: a fold"),
        (["folder", "out.png"], "but INPUT is of the kind folder; accepted: a folder$"),
        (["good.png", "good.png"], "would write over INPUT"),
        (["magimg", "."], "would write over INPUT"),
        (["good.png", "out.jpg", "--outputs", "mask"], "out.jpg cannot take mask first"),
        (["good.png", "notes.txt"], "notes.txt/magimg cannot be written"),
        (["good.png", "other.png"], "other.png exists; give another OUTPUT, or --overwrite"),
        (["folder", "results"], "results/mask/a.png exists; give another OUTPUT, or --over"),
        (["v.avi", "results"], "results/mask/a.png exists; give another OUTPUT, or --over"),
        (
            ["good.png", "out", "--model", "none"],
            "model 'none' cannot be loaded: there is no model",
        ),
        (["good.png", "out", "--steps", "1001"], "steps is 1001; accepted: 1 to 1000"),
        (["good.png", "out", "--tau", "2"], "tau is 2.0; accepted: 0.0 to 1.0"),
        (["good.png", "out", "--backend", "magic"], "backend is 'magic'; accepted: auto, "),
        (["good.png", "out", "--device", "tpu"], "device is 'tpu'; accepted: auto, cpu"),
        (["good.png", "out", "--outputs", "depth"], "depth asked for; accepted: magimg, infrared"),
        (["good.png", "out", "--outputs", ","], "nothing asked for; accepted: magimg"),
    ],
)
def test_what_cannot_be_done_is_told_and_changes_nothing(
    magicfuse, tmp_path, monkeypatch, arguments, text
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "good.png", scene())
    write(tmp_path / "other.png", scene())
    write_video(tmp_path / "v.avi", evenly(2), codec="mjpeg")
    for name in ("folder", "torn", "magimg", "empty", "results/mask"):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path / "results" / "mask" / "a.png", scene())
    write(tmp_path / "folder" / "a.png", scene())
    write(tmp_path / "magimg" / "a.png", scene())
    for name in ("torn.png", "torn.mp4", "torn/a.png"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "notes.txt").write_text("notes\n")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}

    status, out, err = magicfuse(*arguments)

    assert status == 2
    assert not out
    lines = err.strip().splitlines()
    assert "Traceback" not in err
    assert re.search(text, lines[-1])
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("source", ["night.png", "street.avi"])
def test_results_are_replaced_only_when_asked_and_only_by_whole_ones(
    magicfuse, noop, video, tmp_path, source
):
    write(tmp_path / "night.png", scene())
    target = tmp_path / f"out{Path(source).suffix}"
    target.write_bytes(b"precious")
    arguments = (tmp_path / source, target, "--outputs", "magimg")
    status, _, err = magicfuse(*arguments)
    assert (status, target.read_bytes()) == (2, b"precious")
    assert "--overwrite" in err
    assert noop == []  # told before a model was loaded
    assert magicfuse(*arguments, "--overwrite")[0] == 0
    assert frames(target)


@pytest.mark.parametrize("output", ["out.png", "out.mp4", "folder"])
def test_an_output_that_cannot_be_written_is_found_before_the_model_loads(
    magicfuse, noop, video, tmp_path, monkeypatch, output
):
    def refuse(folder):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr("magicfuse_ros.commands.fuse_files.check_writable", refuse)
    source = write(tmp_path / "night.png", scene()) if output == "out.png" else video
    status, _, err = magicfuse(source, tmp_path / "new" / output)
    assert status == 2
    assert re.fullmatch(r"magicfuse fuse: .* cannot be written: No space left .*\n", err)
    assert noop == []
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("number", "status"), [(None, 130), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_stop_leaves_a_video_that_plays(
    magicfuse, noop, video, tmp_path, monkeypatch, suffix, number, status
):
    whole, count = NoopEngine.fuse, iter(range(100))

    def fuse_three(self, frame, extras=frozenset()):
        if next(count) == 3:
            raise KeyboardInterrupt if number is None else Stopped(number)
        return whole(self, frame, extras)

    monkeypatch.setattr(NoopEngine, "fuse", fuse_three)
    target = tmp_path / f"out{suffix}"
    ended, _, err = magicfuse(video, target, "--outputs", "magimg")
    assert ended == status
    assert "stopped" in err
    assert len(frames(target)) == 3
    if suffix != ".mkv":
        assert cv2.VideoCapture(str(target)).get(cv2.CAP_PROP_FRAME_COUNT) == 3


@pytest.fixture
def full_disk():
    """Let no file get longer than some bytes, as on a disk that is full: the kernel refuses."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_full_disk_is_no_success_and_names_the_video(
    magicfuse, noop, full_disk, tmp_path, suffix
):
    video = write_video(tmp_path / "street.mp4", evenly(30), size=(320, 240))
    full_disk(60_000)
    status, _, err = magicfuse(video, tmp_path / f"out{suffix}", "--outputs", "magimg")
    assert status == 2
    assert err == f"magicfuse fuse: {tmp_path}/out{suffix} cannot be written: File too large\n"
    assert not (tmp_path / f"out{suffix}").exists()


def test_a_full_disk_is_no_success_and_names_the_picture(magicfuse, noop, full_disk, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3), np.uint8)
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "small.png", noise[:20])
    write(tmp_path / "in" / "tall.png", noise)
    full_disk(8_000)
    status, _, err = magicfuse(tmp_path / "in", tmp_path / "out", "--outputs", "magimg")
    assert status == 2
    assert f"{tmp_path}/out/magimg/tall.png cannot be written: File too large" in err
    assert written(tmp_path / "out") == ["magimg/small.png"]  # whole, and nothing half


NOOP_FUSE = Path(__file__).parent / "support" / "noop_fuse.py"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_stopped_or_killed_keeps_what_it_wrote(tmp_path, number):
    video = write_video(tmp_path / "street.mp4", evenly(300))
    target = tmp_path / "results" / "out.mp4"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    process = subprocess.Popen(
        [sys.executable, NOOP_FUSE, video, target, "--outputs", "magimg,mask"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "NOOP_DELAY_S": "0.01"},
    )
    seen = target.with_name("out_mask") / "000150.png"
    while process.poll() is None and not seen.exists():
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)

    masks = sorted(target.with_name("out_mask").glob("[0-9]*.png"))
    assert len(masks) < 300
    for mask in masks:
        assert read(mask).shape == (48, 64), mask
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert err.splitlines()[-1] == "magicfuse fuse: stopped; what was written stays"
        assert len(frames(target)) in (len(masks), len(masks) + 1)
    else:
        assert process.returncode == -9
        # Not finished, so it has not got its name; it plays all the same.
        assert not target.exists()
        assert len(frames(target.with_name("out.partial.mp4"))) >= 48


def test_the_help_tells_every_output_and_the_default_model(capsys, monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", {"fuse": "fuse"})
    with pytest.raises(SystemExit):
        cli.main(["fuse", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for name in OUTPUTS:
        assert out.count(name) >= 2
    assert f"(default: {EngineSettings().model})" in out
    assert f"(default: {','.join(fuse.DEFAULT_OUTPUTS)})" in out
