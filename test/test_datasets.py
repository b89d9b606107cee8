import numpy as np
import pytest
from dataset_trees import HEIGHT, TREES, WIDTH, everything, infrared, labels, visible, write

from magicfuse_ros.training.datasets import DatasetError, find_sources, read_source

COUNTS = {  # layout -> frames in train, in val
    "msrs": (3, 1), "mfnet": (2, 1), "fmb": (1, 1), "llvip": (1, 1), "roadscene": (2, 2),
    "m3svd": (6, 3), "m3svd_clips": (3, 3), "camvid": (1, 1), "cityscapes": (1, 1),
}  # fmt: skip


@pytest.mark.parametrize("layout", sorted(TREES))
def test_layout_is_read_in_both_splits(tmp_path, layout):
    TREES[layout](tmp_path / layout)
    for split, count in zip(("train", "val"), COUNTS[layout], strict=True):
        items = list(read_source(layout, tmp_path / layout, split).items())
        assert len(items) == count
        for item in items:
            assert item.visible.ndim == 3
            assert item.visible.dtype == np.uint8
            for plane in (item.infrared, item.labels):
                assert plane is None or plane.shape == item.visible.shape[:2]
            assert (item.infrared is None) == (layout in {"camvid", "cityscapes"})
            labelled = layout in {"mfnet", "fmb", "camvid", "cityscapes"}
            assert (item.labels is not None) == labelled


def test_visible_is_rgb_and_infrared_is_what_was_written(tmp_path):
    TREES["msrs"](tmp_path / "msrs")
    item = next(iter(read_source("msrs", tmp_path / "msrs", "train").items()))
    np.testing.assert_array_equal(item.visible, visible(0)[..., ::-1])
    np.testing.assert_array_equal(item.infrared, infrared(0))


def test_mfnet_splits_its_four_channels(tmp_path):
    TREES["mfnet"](tmp_path / "mfnet")
    item = list(read_source("mfnet", tmp_path / "mfnet", "train").items())[1]
    np.testing.assert_array_equal(item.visible, visible(1)[..., ::-1])
    np.testing.assert_array_equal(item.infrared, infrared(1))


def test_boxes_of_yolo_and_voc_are_relative_corners(tmp_path):
    everything(tmp_path)
    person, car = read_source("msrs", tmp_path / "msrs", "train").frames[0].boxes
    assert (person.kind, car.kind) == ("person", "car")
    assert (person.x0, person.y0, person.x1, person.y1) == (0.25, 0.25, 0.5, 0.75)
    (pedestrian,) = read_source("llvip", tmp_path / "llvip", "train").frames[0].boxes
    assert pedestrian == person
    assert person.pixels(HEIGHT, WIDTH) == (16, 12, 32, 36)


def test_an_empty_box_file_means_no_object_and_no_folder_means_unknown(tmp_path):
    everything(tmp_path)
    assert read_source("msrs", tmp_path / "msrs", "train").frames[2].boxes == ()
    assert read_source("roadscene", tmp_path / "roadscene", "train").frames[0].boxes is None


def test_night_is_told_by_name_or_measured(tmp_path):
    everything(tmp_path)
    msrs = list(read_source("msrs", tmp_path / "msrs", "train").items())
    assert [item.night for item in msrs] == [False, True, False]
    write(
        tmp_path / "roadscene" / "train" / "visible" / "FLIR_00.jpg", visible(0, 90, 40, level=20)
    )
    roadscene = list(read_source("roadscene", tmp_path / "roadscene", "train").items())
    assert [item.night for item in roadscene] == [True, False]


def test_smoke_is_no_clean_target_and_held_out_scenes_stay_out_of_training(tmp_path):
    everything(tmp_path)
    train = read_source("m3svd", tmp_path / "m3svd", "train").frames
    assert {frame.group: frame.clean for frame in train} == {"0113_1714": True, "0117_1605": False}
    val = read_source("m3svd", tmp_path / "m3svd", "val").frames
    assert {frame.group for frame in val} == {"0117_1620"}
    clips = {s: read_source("m3svd_clips", tmp_path / "m3svd_clips", s) for s in ("train", "val")}
    assert {frame.group for frame in clips["train"].frames} == {"0111_1716"}
    assert {frame.group for frame in clips["val"].frames} == {"0111_1803"}


def test_video_frames_are_the_right_ones(tmp_path):
    TREES["m3svd"](tmp_path / "m3svd")
    for item in read_source("m3svd", tmp_path / "m3svd", "train").items():
        wanted = visible(item.frame.video_frame)[..., ::-1].astype(int)
        other = visible(item.frame.video_frame + 1)[..., ::-1].astype(int)
        assert np.abs(item.visible - wanted).mean() < np.abs(item.visible - other).mean() / 2


def test_find_sources_takes_what_is_there_and_says_when_nothing_is(tmp_path):
    TREES["camvid"](tmp_path / "camvid")
    assert [source.name for source in find_sources(tmp_path, "train")] == ["camvid/train"]
    with pytest.raises(DatasetError, match="msrs is missing"):
        find_sources(tmp_path, "train", ["msrs"])
    with pytest.raises(DatasetError, match="holds no dataset"):
        find_sources(tmp_path / "camvid", "train")
    with pytest.raises(DatasetError, match="'kitti' is unknown"):
        read_source("kitti", tmp_path, "train")
    with pytest.raises(DatasetError, match="'test' is unknown"):
        read_source("camvid", tmp_path / "camvid", "test")


def test_llvip_without_its_test_half_is_left_out_of_validation(tmp_path):
    everything(tmp_path)
    names = {source.name for source in find_sources(tmp_path, "val")}
    assert "llvip/val" in names
    (tmp_path / "llvip" / "visible" / "test").rename(tmp_path / "elsewhere")
    assert {s.name for s in find_sources(tmp_path, "val")} == names - {"llvip/val"}


@pytest.mark.parametrize(
    ("layout", "file"),
    [
        ("msrs", "train/infrared/00001D.png"),
        ("msrs", "train/boxes/00002N.txt"),
        ("mfnet", "labels/00002N.png"),
        ("fmb", "train/Label/00001.png"),
        ("llvip", "infrared/train/010001.jpg"),
        ("llvip", "Annotations/010001.xml"),
        ("roadscene", "train/infrared/FLIR_01.jpg"),
        ("m3svd", "infrared/0113_1714.mp4"),
        ("m3svd_clips", "0111_1716/infrared/0001.jpg"),
        ("camvid", "train/labels/0001.png"),
        (
            "cityscapes",
            "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png",
        ),
    ],
)
def test_first_missing_file_is_named(tmp_path, layout, file):
    TREES[layout](tmp_path / layout)
    (tmp_path / layout / file).unlink()
    stem = file.rsplit("/", 1)[-1].split(".")[0]
    with pytest.raises(DatasetError, match=rf"{stem}.* is missing"):
        list(read_source(layout, tmp_path / layout, "train").items())


def _small_infrared(root):
    write(root / "msrs/train/infrared/00002N.png", infrared(0, 32, 24))


def _damaged(root):
    path = root / "msrs/train/visible/00002N.png"
    path.write_bytes(path.read_bytes()[:60])


def _bad_box(root):
    (root / "msrs/train/boxes/00002N.txt").write_text("0 0.5 0.5 0.1 0.1\n7 0.5 0.5 0.1 0.1\n")


def _colour_labels(root):
    write(root / "camvid/train/labels/0001.png", visible(0))


def _three_channels(root):
    write(root / "mfnet/images/00002N.png", visible(0))


def _short_video(root):
    path = root / "m3svd/infrared/0113_1714.mp4"
    path.write_bytes((root / "m3svd/infrared/0117_1605.mp4").read_bytes()[:200])


@pytest.mark.parametrize(
    ("layout", "harm", "says"),
    [
        (
            "msrs",
            _small_infrared,
            r"infrared/00002N.png is 32x24 but .*visible/00002N.png is 64x48",
        ),
        ("msrs", _damaged, r"visible/00002N.png is not a readable image"),
        ("msrs", _bad_box, r"boxes/00002N.txt line 2"),
        ("camvid", _colour_labels, r"labels/0001.png has shape"),
        ("mfnet", _three_channels, r"images/00002N.png has shape"),
        ("m3svd", _short_video, r"infrared/0113_1714.mp4"),
    ],
)
def test_first_bad_file_is_named(tmp_path, layout, harm, says):
    everything(tmp_path)
    harm(tmp_path)
    with pytest.raises(DatasetError, match=says):
        list(read_source(layout, tmp_path / layout, "train").items())


def test_label_stripes_survive(tmp_path):
    TREES["camvid"](tmp_path / "camvid")
    (item,) = read_source("camvid", tmp_path / "camvid", "train").items()
    np.testing.assert_array_equal(item.labels, labels([0, 3, 9, 11]))
