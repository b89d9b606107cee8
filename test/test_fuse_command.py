"""`magicfuse fuse`: images, folders and videos in, files out; what goes wrong is told."""

import re

import cv2
import numpy as np
import pytest
import torch
from support.small_models import SMALL_FEW_STEP

from magicfuse_ros import cli
from magicfuse_ros.commands import fuse
from magicfuse_ros.commands.fuse import OUTPUTS
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.runtime.engine import EXTRAS, EngineSettings, FuseEngine, load_engine

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
    path = tmp_path / "street.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.0, (80, 60))
    for index in range(5):
        writer.write(scene(shift=3 * index))
    writer.release()
    return path


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
    engine = load_engine(EngineSettings(model=model), lambda _: None)
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


def test_a_folder_keeps_the_names_and_the_sizes(magicfuse, tmp_path):
    source = tmp_path / "in"
    (source / "deeper").mkdir(parents=True)
    write(source / "a.png", scene(60, 80))
    write(source / "b.JPG", scene(33, 47))
    write(source / "same.png", scene(40, 40))
    write(source / "same.bmp", scene(40, 40))
    write(source / "grey.pgm", scene(20, 90)[:, :, 0])
    write(source / "deep.png", scene().astype(np.uint16) * 256)
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


def test_images_that_cannot_be_read_are_left_out_and_told(magicfuse, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    write(source / "good.png", scene())
    (source / "torn.png").write_bytes((source / "good.png").read_bytes()[:40])
    (source / "empty.jpg").touch()

    status, out, err = magicfuse(source, tmp_path / "out")

    assert status == 1
    assert "1 fused" in out
    assert "2 left out" in out
    assert "left out, not readable as an image: torn" in err
    assert written(tmp_path / "out") == ["magimg/good.png", "mask/good.png"]


def test_a_video_into_a_folder(magicfuse, video, tmp_path):
    status, out, _ = magicfuse(video, tmp_path / "out", "--outputs", "magimg")
    assert status == 0
    assert "5 fused" in out
    assert written(tmp_path / "out") == [f"magimg/{index:06d}.png" for index in range(5)]


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_a_video_into_a_video(magicfuse, video, tmp_path, suffix):
    target = tmp_path / "out" / f"fused{suffix}"
    assert magicfuse(video, target, "--outputs", "magimg,infrared,mask")[0] == 0

    frames = [f"fused_mask/{index:06d}.png" for index in range(5)]
    assert written(tmp_path / "out") == sorted([target.name, f"fused_infrared{suffix}", *frames])
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


def test_a_video_that_is_cut_short_gives_what_there_is(magicfuse, video, tmp_path):
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    status, _, _ = magicfuse(video, tmp_path / "out")
    assert status == 0
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
        (["missing.png", "out"], "INPUT .*missing.png does not exist; give an image"),
        (["torn.png", "out"], "INPUT .*torn.png cannot be read as an image; it is damaged"),
        (["torn.mp4", "out"], "INPUT .*torn.mp4 cannot be read as an image or a video"),
        (["notes.txt", "out"], "INPUT .*notes.txt cannot be read as an image or a video"),
        (["empty", "out"], "folder .*empty holds no images .*subfolders are not"),
        (["torn", "out"], "none of the 1 images in .*torn can be read"),
        (["good.png", "out.mp4"], "ends in .mp4, but INPUT is of the kind image; accepted: a fold"),
        (["folder", "out.png"], "but INPUT is of the kind folder; accepted: a folder$"),
        (["good.png", "good.png"], "would write over INPUT"),
        (["magimg", "."], "would write over INPUT"),
        (["good.png", "out.jpg", "--outputs", "mask"], "out.jpg cannot take mask first"),
        (["good.png", "notes.txt"], "notes.txt/magimg/good.png cannot be written"),
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
    for name in ("folder", "torn", "magimg", "empty"):
        (tmp_path / name).mkdir()
    write(tmp_path / "folder" / "a.png", scene())
    write(tmp_path / "magimg" / "a.png", scene())
    for name in ("torn.png", "torn.mp4", "torn/a.png"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "notes.txt").write_text("notes\n")
    before = {name: (tmp_path / name).read_bytes() for name in written(tmp_path)}

    status, out, err = magicfuse(*arguments)

    assert status == 2
    assert not out
    lines = err.strip().splitlines()
    assert "Traceback" not in err
    assert re.search(text, lines[-1])
    assert {name: (tmp_path / name).read_bytes() for name in written(tmp_path)} == before


def test_an_interrupt_leaves_a_video_that_plays(magicfuse, video, tmp_path, monkeypatch):
    whole, count = FuseEngine.fuse, iter(range(100))

    def fuse_three(self, frame, extras=frozenset()):
        if next(count) == 3:
            raise KeyboardInterrupt
        return whole(self, frame, extras)

    monkeypatch.setattr(FuseEngine, "fuse", fuse_three)
    status, _, err = magicfuse(video, tmp_path / "out.mp4", "--outputs", "magimg")
    assert status == 130
    assert "stopped" in err
    assert cv2.VideoCapture(str(tmp_path / "out.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_the_help_tells_every_output_and_the_default_model(capsys, monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", {"fuse": "fuse"})
    with pytest.raises(SystemExit):
        cli.main(["fuse", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for name in OUTPUTS:
        assert out.count(name) >= 2
    assert f"(default: {EngineSettings().model})" in out
    assert f"(default: {','.join(fuse.DEFAULT_OUTPUTS)})" in out
