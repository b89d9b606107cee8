import shutil

import cv2
import numpy as np
import pytest
from dataset_trees import HEIGHT, TREES, WIDTH, everything, infrared, labels, visible, write
from PIL import Image

from magicfuse_ros.model.labels import UNKNOWN
from magicfuse_ros.training.datasets.cache import CacheSettings, open_cache
from magicfuse_ros.training.datasets.frames import DatasetError, read_image
from magicfuse_ros.training.datasets.label_maps import CANONICAL
from magicfuse_ros.training.datasets.layouts import find_sources, read_source

COUNTS = {  # layout -> frames in train, in val
    "msrs": (3, 1), "mfnet": (2, 1), "fmb": (1, 1), "llvip": (1, 1), "roadscene": (2, 2),
    "m3svd": (6, 3), "m3svd_clips": (3, 3), "camvid": (1, 1), "cityscapes": (1, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Every layout, for tests that change nothing."""
    return everything(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def tree(kept, tmp_path):
    """Every layout, to be harmed."""
    return shutil.copytree(kept, tmp_path / "tree")


@pytest.mark.parametrize("layout", sorted(TREES))
def test_layout_is_read_in_both_splits(kept, layout):
    for split, count in zip(("train", "val"), COUNTS[layout], strict=True):
        items = list(read_source(layout, kept / layout, split).items())
        assert len(items) == count
        for item in items:
            assert item.visible.ndim == 3
            assert item.visible.dtype == np.uint8
            for plane in (item.infrared, item.labels):
                assert plane is None or plane.shape == item.visible.shape[:2]
            assert (item.infrared is None) == (layout in {"camvid", "cityscapes"})
            labelled = layout in {"mfnet", "fmb", "camvid", "cityscapes"}
            assert (item.labels is not None) == labelled


def test_visible_is_rgb_and_infrared_is_what_was_written(kept):
    item = next(iter(read_source("msrs", kept / "msrs", "train").items()))
    np.testing.assert_array_equal(item.visible, visible(0)[..., ::-1])
    np.testing.assert_array_equal(item.infrared, infrared(0))


def test_mfnet_splits_its_four_channels(kept):
    item = list(read_source("mfnet", kept / "mfnet", "train").items())[1]
    np.testing.assert_array_equal(item.visible, visible(1)[..., ::-1])
    np.testing.assert_array_equal(item.infrared, infrared(1))


def test_boxes_of_yolo_and_voc_are_relative_corners(kept):
    person, car = read_source("msrs", kept / "msrs", "train").frames[0].boxes
    assert (person.kind, car.kind) == ("person", "car")
    assert (person.x0, person.y0, person.x1, person.y1) == (0.25, 0.25, 0.5, 0.75)
    (pedestrian,) = read_source("llvip", kept / "llvip", "train").frames[0].boxes
    assert pedestrian == person
    assert person.pixels(HEIGHT, WIDTH) == (16, 12, 32, 36)


def test_an_empty_box_file_means_no_object_and_no_folder_means_unknown(kept):
    assert read_source("msrs", kept / "msrs", "train").frames[2].boxes == ()
    assert read_source("roadscene", kept / "roadscene", "train").frames[0].boxes is None


def test_night_is_told_by_name_or_measured(tree):
    msrs = list(read_source("msrs", tree / "msrs", "train").items())
    assert [item.night for item in msrs] == [False, True, False]
    write(tree / "roadscene" / "train" / "visible" / "FLIR_00.jpg", visible(0, 90, 40, level=20))
    roadscene = list(read_source("roadscene", tree / "roadscene", "train").items())
    assert [item.night for item in roadscene] == [True, False]


def test_smoke_is_no_clean_target_and_held_out_scenes_stay_out_of_training(kept):
    train = read_source("m3svd", kept / "m3svd", "train").frames
    assert {frame.group: frame.clean for frame in train} == {"0113_1714": True, "0117_1605": False}
    val = read_source("m3svd", kept / "m3svd", "val").frames
    assert {frame.group for frame in val} == {"0117_1620"}
    clips = {s: read_source("m3svd_clips", kept / "m3svd_clips", s) for s in ("train", "val")}
    assert {frame.group for frame in clips["train"].frames} == {"0111_1716"}
    assert {frame.group for frame in clips["val"].frames} == {"0111_1803"}


def test_video_frames_are_the_right_ones(kept):
    for item in read_source("m3svd", kept / "m3svd", "train").items():
        wanted = visible(item.frame.video_frame)[..., ::-1].astype(int)
        other = visible(item.frame.video_frame + 1)[..., ::-1].astype(int)
        assert np.abs(item.visible - wanted).mean() < np.abs(item.visible - other).mean() / 2


def test_labels_that_networks_made_join_what_boxes_tell(tmp_path):
    TREES["msrs"](tmp_path / "msrs")
    TREES["m3svd_clips"](tmp_path / "m3svd_clips")
    TREES["camvid"](tmp_path / "camvid")
    folder = tmp_path / "pseudo" / "msrs" / "train" / "labels"
    frame = read_source("msrs", tmp_path / "msrs", "train").frames[0]
    ids = np.full(read_image(frame.visible).shape[:2], 11, np.uint8)  # CamVid's: unlabelled
    ids[:4] = 0  # sky
    write(folder / f"{frame.name}.png", ids)
    clips = read_source("m3svd_clips", tmp_path / "m3svd_clips", "train").frames
    name = clips[0].name.replace(":", "_")
    write(tmp_path / "pseudo" / "m3svd_clips" / "train" / "labels" / f"{name}.png", ids)
    sources = {source.name: source for source in find_sources(tmp_path, "train")}
    labelled = {
        source.name: [frame.name for frame in source.frames if frame.pseudo]
        for source in sources.values()
    }
    assert labelled == {
        "msrs/train": [frame.name], "m3svd_clips/train": [clips[0].name], "camvid/train": [],
    }  # fmt: skip
    cached = open_cache(sources["msrs/train"], tmp_path / "cache", CacheSettings(64, 48))
    first = cached.labels(0)
    assert cached.items[0].pseudo
    assert set(np.unique(first[:4])) == {CANONICAL.index("sky")}
    assert CANONICAL.index("person") in first[6:]  # from the box
    assert UNKNOWN in first


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


def test_llvip_without_its_test_half_is_left_out_of_validation(tree):
    names = {source.name for source in find_sources(tree, "val")}
    assert "llvip/val" in names
    (tree / "llvip" / "visible" / "test").rename(tree / "elsewhere")
    assert {s.name for s in find_sources(tree, "val")} == names - {"llvip/val"}


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
def test_first_missing_file_is_named(tree, layout, file):
    (tree / layout / file).unlink()
    stem = file.rsplit("/", 1)[-1].split(".")[0]
    with pytest.raises(DatasetError, match=rf"{stem}.* is missing"):
        list(read_source(layout, tree / layout, "train").items())


def _small_infrared(root):
    write(root / "msrs/train/infrared/00002N.png", infrared(0, 32, 24))


def _damaged(root):
    path = root / "msrs/train/visible/00002N.png"
    path.write_bytes(path.read_bytes()[:60])


def _cut_jpeg(root):
    path = root / "roadscene/train/visible/FLIR_01.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _cut_infrared_jpeg(root):
    path = root / "llvip/infrared/train/010001.jpg"
    path.write_bytes(path.read_bytes()[:-100])


def _colour_labels(root):
    write(root / "camvid/train/labels/0001.png", visible(0))


def _palette_labels(root):
    picture = Image.fromarray(labels([0, 3, 9, 11]))
    picture.putpalette(list(range(256)) * 3)
    picture.save(root / "camvid/train/labels/0001.png")


def _labels_of_another_set(root):
    write(root / "camvid/train/labels/0001.png", labels([0, 3, 12, 200]))


def _labels_of_trees(root):
    write(root / "mfnet/labels/00002N.png", labels([0, 9]))


def _small_labels(root):
    write(root / "fmb/train/Label/00001.png", labels([1, 2])[::2, ::2])


def _lossy_labels(root):
    folder = root / "camvid/train/labels"
    (folder / "0001.png").unlink()
    write(folder / "0001.jpg", labels([0, 3, 9, 11]))


def _three_channels(root):
    write(root / "mfnet/images/00002N.png", visible(0))


def _short_video(root):
    path = root / "m3svd/infrared/0113_1714.mp4"
    path.write_bytes((root / "m3svd/infrared/0117_1605.mp4").read_bytes()[:200])


def _deep_png(root):
    write(root / "msrs/train/infrared/00002N.png", infrared(0).astype(np.uint16) * 60 + 20000)


def _deep_tiff(root):
    folder = root / "msrs/train/infrared"
    (folder / "00002N.png").unlink()
    write(folder / "00002N.tiff", infrared(0).astype(np.uint16) * 60 + 20000)


def _deep_visible(root):
    write(root / "camvid/train/visible/0001.png", visible(3).astype(np.uint16) * 16)
    (root / "camvid/train/visible/0001.jpg").unlink()


def _deep_labels(root):
    write(root / "camvid/train/labels/0001.png", labels([0, 3]).astype(np.uint16))


def _false_colours(root):
    path = root / "msrs/train/infrared/00002N.png"
    write(path, cv2.applyColorMap(infrared(0), cv2.COLORMAP_INFERNO))


def _two_of_one_name(root):
    write(root / "msrs/train/visible/00002N.jpg", visible(5))


def _two_partners(root):
    write(root / "camvid/train/labels/0001.bmp", labels([0, 3]))


def _wrong_list(root):
    (root / "mfnet/train.txt").write_text("00001D\n\n00007D\n")


def _list_with_twins(root):
    (root / "mfnet/train.txt").write_text("00001D\n00002N\n00001D\n")


def _list_in_utf_16(root):
    (root / "mfnet/train.txt").write_text("00001D\n", encoding="utf-16")


@pytest.mark.parametrize(
    ("layout", "harm", "says"),
    [
        (
            "msrs",
            _small_infrared,
            r"infrared/00002N.png is 32x24 but .*visible/00002N.png is 64x48",
        ),
        ("msrs", _damaged, r"visible/00002N.png is not a readable picture: .*damaged"),
        ("roadscene", _cut_jpeg, r"visible/FLIR_01.jpg is not a readable picture: .*damaged"),
        ("llvip", _cut_infrared_jpeg, r"infrared/train/010001.jpg is not a readable picture"),
        ("camvid", _colour_labels, r"labels/0001.png has shape"),
        ("camvid", _palette_labels, r"labels/0001.png has shape.* and no palette"),
        ("camvid", _labels_of_another_set, r"labels/0001.png holds the ids \[12, 200\]"),
        ("mfnet", _labels_of_trees, r"labels/00002N.png holds the ids \[9\]; accepted: \[0, 1"),
        ("fmb", _small_labels, r"Label/00001.png is 32x24 but"),
        ("camvid", _lossy_labels, r"labels/0001.jpg is a JPEG"),
        ("camvid", _deep_labels, r"labels/0001.png has 16 bits a channel"),
        ("mfnet", _three_channels, r"images/00002N.png has shape"),
        ("m3svd", _short_video, r"infrared/0113_1714.mp4"),
        ("msrs", _deep_png, r"infrared/00002N.png has 16 bits a channel; convert it to 8"),
        ("msrs", _deep_tiff, r"infrared/00002N.tiff has 16 bits a channel; convert it to 8"),
        ("camvid", _deep_visible, r"visible/0001.png has 16 bits a channel; convert it to 8"),
        ("msrs", _false_colours, r"infrared/00002N.png shows heat in false colours"),
        ("msrs", _two_of_one_name, r"visible/00002N.jpg and 00002N.png have one name"),
        ("camvid", _two_partners, r"labels/0001.bmp and 0001.png have one name"),
        ("mfnet", _wrong_list, r"00007D.png is missing; .*train.txt line 3 names it"),
        ("mfnet", _list_with_twins, r"train.txt line 3 names '00001D' again, as line 1"),
        ("mfnet", _list_in_utf_16, r"train.txt line 1 is not UTF-8"),
    ],
)
def test_first_bad_file_is_named(tree, layout, harm, says):
    harm(tree)
    with pytest.raises(DatasetError, match=says):
        list(read_source(layout, tree / layout, "train").items())


@pytest.mark.parametrize(
    "line",
    [
        "7 .5 .5 .1 .1", "-1 .5 .5 .1 .1", "1.7 .5 .5 .1 .1", "2 320 240 100 50", "2 .5 .5 -.1 .1",
        "2 .5 .5 0 .1", "0 nan .5 .1 .1", "0 .5 inf .1 .1", "0 .5 .5 .1", "0 .5 .5 .1 .1 .9",
        "person .5 .5 .1 .1", "0, .5, .5, .1, .1",
    ],
)  # fmt: skip
def test_a_wrong_box_is_named_with_its_line(tree, line):
    (tree / "msrs/train/boxes/00002N.txt").write_text(f"0 0.5 0.5 0.1 0.1\n\n{line}\n")
    with pytest.raises(DatasetError, match=r"boxes/00002N.txt line 3 is .*use `class cx cy w h`"):
        read_source("msrs", tree / "msrs", "train")


def test_boxes_in_another_encoding_are_named_and_a_mark_of_utf_8_is_none_of_theirs(tree):
    boxes = tree / "msrs/train/boxes/00002N.txt"
    boxes.write_text("2 .5 .5 .1 .1\n", encoding="utf-8-sig")
    assert read_source("msrs", tree / "msrs", "train").frames[1].boxes[0].kind == "car"
    boxes.write_text("2 .5 .5 .1 .1\n", encoding="utf-16")
    with pytest.raises(DatasetError, match=r"boxes/00002N.txt line 1 is not UTF-8"):
        read_source("msrs", tree / "msrs", "train")


VOC = """<annotation>
<size><width>64</width><height>48</height></size>
<object><name>person</name>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>6</ymax></bndbox></object>
</annotation>
"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (">64<", ">0<", "line 2: the size is 0x48"),
        ("<width>64</width>", "", "line 2: <size> has no <width>"),
        ("<size><width>64</width><height>48</height></size>", "", "there is no <size>"),
        ("</bndbox></object>\n</annotation>", "", "line 4: no element found"),
        ("</xmin>", "", "line 4: mismatched tag"),
        (VOC, "", "line 1: no element found"),
        (VOC, "0 .5 .5 .1 .1", "line 1: syntax error"),
        (">1<", ">one<", "line 4: <xmin> is 'one'; use a number"),
        (">1<", ">nan<", "line 4: <xmin> is 'nan'"),
        (">1<", "><", "line 4: <xmin> is ''"),
        ("<xmin>1</xmin>", "", "line 4: <bndbox> has no <xmin>"),
        (">3<", ">0<", "line 4: the <bndbox> is 1 2 0 6; use xmin < xmax"),
        (">3<", ">66<", "line 4: .*inside the picture of 64x48"),
        (">1<", ">-1<", "line 4: .*inside the picture of 64x48"),
        (">person<", ">dog<", "line 4: the object's <name> is 'dog'; accepted: person"),
        ("<name>person</name>", "", "line 4: the object's <name> is ''"),
        ("bndbox>", "box>", "line 4: the object has no <bndbox>"),
    ],
)
def test_a_wrong_annotation_is_named_with_its_line(tree, old, new, says):
    assert old in VOC
    (tree / "llvip/Annotations/010001.xml").write_text(VOC.replace(old, new))
    with pytest.raises(DatasetError, match=rf"Annotations/010001.xml {says}|010001.xml .*{says}"):
        read_source("llvip", tree / "llvip", "train")


def test_an_annotation_may_be_in_any_encoding_that_it_names_and_hold_nothing(tree):
    path = tree / "llvip/Annotations/010001.xml"
    path.write_text(VOC, encoding="utf-16")
    (box,) = read_source("llvip", tree / "llvip", "train").frames[0].boxes
    assert (box.kind, box.x0, box.y1) == ("person", 1 / 64, 6 / 48)
    path.write_text(VOC.replace("object>", "part>"))
    assert read_source("llvip", tree / "llvip", "train").frames[0].boxes == ()
    path.write_text(VOC + " " * (1 << 20))
    with pytest.raises(DatasetError, match="annotations of one picture have less than"):
        read_source("llvip", tree / "llvip", "train")


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("turned", ["visible/1.jpg", "infrared/1.jpg", "labels/1.png"])
def test_orientation_tags_turn_no_half_of_a_pair(tmp_path, turned, orientation):
    scene = np.zeros((HEIGHT, WIDTH), np.uint8)
    scene[4:12, 4:12] = 250
    root = tmp_path / "msrs"
    for name, plane in (("visible/1.jpg", np.dstack([scene] * 3)), ("infrared/1.jpg", scene),
                        ("labels/1.png", scene // 125)):  # fmt: skip
        path = root / "train" / name
        path.parent.mkdir(parents=True)
        exif = Image.Exif()
        if name == turned:
            exif[0x0112] = orientation
        Image.fromarray(plane).save(path, exif=exif)
    (item,) = read_source("msrs", root, "train").items()
    for plane in (item.visible[..., 0], item.infrared, item.labels * np.uint8(125)):
        assert np.abs(plane.astype(int) - scene).mean() < 5.0


def test_hidden_files_are_none_of_the_pictures_videos_and_clips(tree):
    for file in (
        "msrs/train/visible/._00001D.png", "msrs/train/visible/.a.jpg", "m3svd/visible/._a.mp4",
        "m3svd_clips/.clip/visible/1.png", "camvid/train/labels/._0001.png",
        "cityscapes/leftImg8bit/train/aachen/._b_leftImg8bit.png",
    ):  # fmt: skip
        path = tree / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"attributes")
    for layout in ("msrs", "m3svd", "m3svd_clips", "camvid", "cityscapes"):
        assert len(list(read_source(layout, tree / layout, "train").items())) == COUNTS[layout][0]


def test_label_stripes_survive(kept):
    (item,) = read_source("camvid", kept / "camvid", "train").items()
    np.testing.assert_array_equal(item.labels, labels([0, 3, 9, 11]))
