import cv2
import numpy as np
import pytest
import torch
from dataset_trees import TREES, everything, write
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from magicfuse_ros.model.labels import UNKNOWN, LabelSet
from magicfuse_ros.training.datasets.cache import CacheSettings, open_cache, training_size
from magicfuse_ros.training.datasets.crops import Crops, DataConfig
from magicfuse_ros.training.datasets.frames import DatasetError
from magicfuse_ros.training.datasets.layouts import find_sources, read_source
from magicfuse_ros.training.datasets.pixels import Cut, Pixels
from magicfuse_ros.training.datasets.recolour import recolour
from magicfuse_ros.training.datasets.validation import validation_items
from magicfuse_ros.training.heat import HEAT

SMALL = CacheSettings(width=40, height=30)
DRIVE = LabelSet.load("drive")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return everything(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def sources(tree, cache_dir):
    return [open_cache(source, cache_dir, SMALL) for source in find_sources(tree, "train")]


def crops(sources, **options):
    needs = options.pop("needs", frozenset())
    config = DataConfig(**{"crop": 24, **options})
    return Crops(sources, config, DRIVE, seed=5, needs=needs)


@pytest.mark.parametrize(
    ("size", "stored"),
    [
        ((640, 480), (320, 240)),
        ((480, 360), (320, 240)),
        ((640, 512), (320, 256)),
        ((577, 257), (539, 240)),
        ((2048, 1024), (480, 240)),
        ((100, 300), (320, 960)),
    ],
)
def test_training_size_keeps_the_aspect_and_covers_the_resolution(size, stored):
    assert training_size(*size, CacheSettings()) == stored


def test_cache_holds_every_item_at_training_size(sources):
    assert sum(len(source) for source in sources) == 20
    for source in sources:
        for index, item in enumerate(source.items):
            shape = source.visible(index).shape
            assert shape == (item.height, item.width, 3)
            assert shape[0] >= SMALL.height
            assert shape[1] >= SMALL.width
            assert (source.infrared(index) is not None) == item.has_infrared
            assert (source.labels(index) is not None) == item.has_labels


def test_cache_is_built_once_and_again_when_a_file_or_a_setting_changes(tmp_path):
    TREES["camvid"](tmp_path / "camvid")
    built = []

    def opened(settings):
        source = read_source("camvid", tmp_path / "camvid", "train")
        before = len(built)
        cached = open_cache(source, tmp_path / "cache", settings, built.append)
        return cached, len(built) > before

    cached, fresh = opened(SMALL)
    assert fresh
    again, fresh = opened(SMALL)
    assert not fresh
    np.testing.assert_array_equal(cached.visible(0), again.visible(0))
    assert opened(CacheSettings(width=20, height=16))[1]
    write(tmp_path / "camvid/train/visible/0001.jpg", np.full((48, 64, 3), 77, np.uint8))
    changed, fresh = opened(SMALL)
    assert fresh
    assert changed.visible(0).mean() == pytest.approx(77, abs=1)


def test_failed_build_leaves_nothing_that_could_be_taken_for_a_cache(tmp_path):
    TREES["camvid"](tmp_path / "camvid")
    (tmp_path / "camvid/train/labels/0001.png").write_bytes(b"no image")
    source = read_source("camvid", tmp_path / "camvid", "train")
    with pytest.raises(DatasetError, match=r"labels/0001.png is not a readable picture"):
        open_cache(source, tmp_path / "cache", SMALL)
    assert list((tmp_path / "cache").iterdir()) == []


def test_cut_short_cache_is_named(tmp_path):
    TREES["camvid"](tmp_path / "camvid")
    source = read_source("camvid", tmp_path / "camvid", "train")
    open_cache(source, tmp_path / "cache", SMALL)
    (array,) = (tmp_path / "cache").glob("*.raw")
    array.write_bytes(bytes(10))
    with pytest.raises(DatasetError, match="delete it"):
        open_cache(source, tmp_path / "cache", SMALL)


def test_boxes_become_weak_labels_and_hot_spots_become_boxes(sources):
    by_name = {source.name: source for source in sources}
    msrs = by_name["msrs/train"]
    found = set(np.unique(msrs.labels(0)).tolist())
    assert UNKNOWN in found
    assert len(found) == 3  # person, car, unknown
    kinds = {box.kind for item in by_name["m3svd_clips/train"].items for box in item.boxes}
    assert kinds <= {HEAT}
    assert {box.kind for box in msrs.items[0].boxes} == {"person", "car"}
    assert {name.split("/")[0] for name in by_name if by_name[name].items[0].annotated} == {
        "msrs",
        "llvip",
    }


def test_videos_share_one_infrared_scale(tree, tmp_path):
    source = read_source("m3svd_clips", tree / "m3svd_clips", "train")
    cached = open_cache(source, tmp_path, SMALL)
    levels = [int(cached.infrared(k).max()) for k in range(len(cached))]
    assert max(levels) - min(levels) <= 3


def test_sample_has_the_documented_tensors(sources):
    sample = crops(sources).batch(0, 5)
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in sample.items()}
    image = torch.float32
    assert shapes == {
        "degraded": ((5, 3, 24, 24), image), "clean": ((5, 3, 24, 24), image),
        "infrared": ((5, 1, 24, 24), image), "labels": ((5, 24, 24), torch.int64),
        "thermal_weight": ((5, 24, 24), image), "has_infrared": ((5,), image),
        "has_clean": ((5,), image), "annotated": ((5,), image), "source": ((5,), image),
    }  # fmt: skip
    for name in ("degraded", "clean"):
        assert sample[name].is_contiguous(memory_format=torch.channels_last)
    for name in ("degraded", "clean", "infrared", "thermal_weight"):
        assert 0.0 <= float(sample[name].min()) <= float(sample[name].max()) <= 1.0


def test_samples_depend_on_seed_and_place_alone(sources):
    first, second = (crops(sources, paste=1.0, recolour=0.5) for _ in range(2))
    second.batch(17, 4)  # what was asked before must not matter
    for place in (3, 0, 99):
        a, b = first.batch(place, 4), second.batch(place, 4)
        assert all(torch.equal(a[name], b[name]) for name in a)
    other = Crops(sources, DataConfig(crop=24), DRIVE, seed=6)
    assert not torch.equal(first.batch(0, 4)["degraded"], other.batch(0, 4)["degraded"])


def cut(source, cuts, shape):
    pixels = Pixels()
    for _ in cuts:
        pixels.add(source.bytes_on(torch.device("cpu")), source.items[0])
    return [plane.numpy() for plane in pixels.cut(cuts, shape, torch.device("cpu"))]


def test_a_turned_and_scaled_window_is_what_opencv_cuts(sources):
    source = next(source for source in sources if source.name == "fmb/train")
    cuts = [Cut((19.3, 15.2), 8.0, 0.9, True), Cut((22.0, 13.0), -9.0, 1.6, False)]
    colours, known = cut(source, cuts, (20, 36))
    for k, each in enumerate(cuts):
        smooth, nearest = (
            cv2.warpAffine(
                plane, each.matrix(20, 36), (36, 20), flags=flags | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REFLECT_101,
            )
            for plane, flags in (
                (source.visible(0), cv2.INTER_LINEAR), (source.labels(0), cv2.INTER_NEAREST)
            )
        )  # fmt: skip
        # OpenCV interpolates between 32 parts of a pixel, and this between 256.
        assert np.abs(colours[k, ..., :3].astype(int) - smooth).mean() < 0.6
        assert np.mean(known[k, ..., 0] == nearest) > 0.97


@pytest.mark.parametrize("warp", [0.0, 1.0])
def test_every_plane_of_a_sample_is_cut_alike(tmp_path, warp):
    # The visible image, the infrared and the labels of this item all show the same vertical edge.
    left = np.tile(np.arange(64) < 32, (48, 1))
    write(
        tmp_path / "fmb/train/Visible/1.png", np.dstack([np.where(left, 200, 50)] * 3).astype("u1")
    )
    write(tmp_path / "fmb/train/Infrared/1.png", np.where(left, 200, 50).astype("u1"))
    write(tmp_path / "fmb/train/Label/1.png", np.where(left, 8, 1).astype("u1"))
    settings = CacheSettings(width=64, height=48)
    source = open_cache(read_source("fmb", tmp_path / "fmb", "train"), tmp_path / "c", settings)
    batch = crops([source], crop=32, warp=warp, around_box=0.0).batch(0, 30)
    sides = set()
    for index in range(30):
        sample = {name: value[index] for name, value in batch.items()}
        person = sample["labels"] == DRIVE.id_of("person")
        for image in (sample["clean"][0], sample["infrared"][0]):
            bright = image > (image.min() + image.max()) / 2 if person.any() else image < 0
            same = (bright == person).float().mean()
            assert same > 0.9 or person.all()
        sides.add(bool(person[:, 0].all()) and not person[:, -1].any())
    assert sides == {True, False}  # mirrored in some


@pytest.mark.parametrize("warp", [0.0, 1.0])
def test_crops_may_be_wider_than_high(sources, warp):
    batch = crops(sources, crop=20, crop_width=36, warp=warp).batch(0, 20)
    for name in ("degraded", "clean", "infrared", "labels", "thermal_weight"):
        assert batch[name].shape[-2:] == (20, 36)


def test_a_crop_of_the_whole_image_is_the_image(tmp_path):
    TREES["camvid"](tmp_path / "camvid")
    source = read_source("camvid", tmp_path / "camvid", "train")
    cached = open_cache(source, tmp_path / "cache", CacheSettings(width=64, height=48))
    batch, mirrored = crops([cached], crop=48, crop_width=64, warp=0.0).batch(0, 20), 0
    for clean in batch["clean"]:
        image = (clean.permute(1, 2, 0) * 255.0).round().byte().numpy()
        is_mirrored = not np.array_equal(image, cached.visible(0))
        mirrored += is_mirrored
        np.testing.assert_array_equal(image[:, :: -1 if is_mirrored else 1], cached.visible(0))
    assert 0 < mirrored < 20


def test_needs_choose_the_items(sources):
    names = [source.name for source in sources]
    labelled = crops(sources, needs=frozenset({"labels", "infrared"}))
    drawn = {names[int(s)] for s in labelled.batch(0, 60)["source"]}
    assert drawn == {"msrs/train", "mfnet/train", "fmb/train", "llvip/train"}
    clean = crops(sources, needs=frozenset({"clean"}))
    assert bool((clean.batch(0, 60)["has_clean"] == 1.0).all())
    assert bool((crops(sources).batch(0, 100)["has_clean"] == 0.0).any())


def test_recolouring_changes_the_visible_image_alone_and_keeps_what_is_brighter(sources):
    a, b = (crops(sources, recolour=chance, warp=0.0).batch(0, 20) for chance in (0.0, 1.0))
    # The seed is one stream: what is drawn after the colours differs, what is cut does not.
    for key in ("infrared", "labels", "thermal_weight"):
        assert torch.equal(a[key], b[key])
    assert all(not torch.equal(*pair) for pair in zip(a["clean"], b["clean"], strict=True))


@given(
    st.integers(0, 2**32 - 1),
    arrays(np.uint8, (4, 5), elements=st.integers(0, 255)),
)
def test_recoloured_grey_levels_keep_their_order(seed, levels):
    image = np.repeat(levels[..., None], 3, axis=2)
    result = recolour(torch.from_numpy(image)[None].float(), np.random.default_rng(seed))
    assert result.shape == (1, *image.shape)
    result = result[0].numpy().astype(int)
    order = np.argsort(levels, axis=None, kind="stable")
    for channel in range(3):  # rounding twice, and saturation, may cost a level
        assert (np.diff(result[..., channel].ravel()[order]) >= -2).all()


def test_recolouring_is_seeded_and_leaves_its_input_alone():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3))).float()
    before = images.clone()
    first, second, third = (recolour(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(images, before)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_weights_mix_the_sources(sources):
    weights = {source.name: 0.0 for source in sources} | {"camvid/train": 3.0, "msrs/train": 1.0}
    dataset = crops(sources, crop=16, weights=tuple(weights.items()))
    names = [sources[int(s)].name for s in dataset.batch(0, 400)["source"]]
    assert names.count("camvid/train") / 400 == pytest.approx(0.75, abs=0.07)
    assert set(names) == {"camvid/train", "msrs/train"}


def test_crops_around_boxes_hold_more_of_people(sources):
    msrs = [source for source in sources if source.name == "msrs/train"]

    def share(chance):
        batch = crops(msrs, crop=16, warp=0.0, around_box=chance).batch(0, 400)
        return float((batch["thermal_weight"] == 1.0).float().mean())

    assert share(1.0) > share(0.0)


def test_validation_items_are_fixed_and_independent_of_what_else_is_asked(tree, tmp_path):
    conditions = ("none", "haze", "mixed")
    options = {"settings": SMALL, "layouts": ["msrs", "m3svd_clips"]}
    items = validation_items(tree, tmp_path, conditions=conditions, **options)
    assert len(items) == (1 + 3) * 3
    alone = validation_items(tree, tmp_path, conditions=("haze",), **options)
    twins = [item for item in items if item.condition == "haze"]
    for a, b in zip(twins, alone, strict=True):
        assert (a.recipe, a.seed) == (b.recipe, b.seed)
        np.testing.assert_array_equal(a.degraded(), b.degraded())
    for item in items:
        same = np.array_equal(item.degraded(), item.clean())
        assert same == (not item.recipe.steps)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda s: crops(s, crop=8), r"data\.crop is 8"),
        (lambda s: crops(s, recolour=-0.1), r"data\.recolour is -0\.1"),
        (lambda s: crops(s, warp=float("nan")), r"data\.warp is nan"),
        (lambda s: crops(s, scale=(2.0, 1.0)), r"data\.scale is"),
        (lambda s: crops(s, weights=(("camvid/train", float("nan")),)), "camvid/train: nan"),
        (lambda _: CacheSettings(width=4), "4x240"),
        (
            lambda s: crops(s, weights=(("kitti", 1.0),)),
            "kitti",
        ),
    ],
)
def test_errors_name_the_value(sources, make, says):
    with pytest.raises(ValueError, match=says):
        make(sources)


def test_a_need_that_nothing_meets_is_an_error(sources):
    camvid = [source for source in sources if source.name == "camvid/train"]
    with pytest.raises(DatasetError, match="infrared"):
        crops(camvid, needs=frozenset({"infrared"}))
