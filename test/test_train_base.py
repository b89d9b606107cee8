"""scripts/train_base: the prepared run, packed and rehearsed on the CPU with seconds to spare."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from dataset_trees import TREES
from support.small_models import SMALL_REFINED
from support.training_runs import ROOT, data_folder, run_folder, start, write_recipe

from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.training.datasets.cache import CacheSettings
from magicfuse_ros.training.datasets.frames import DatasetError
from magicfuse_ros.training.datasets.packing import pack, training_sources
from magicfuse_ros.training.recipe import STAGES

SCRIPT = ROOT / "scripts" / "train_base"
SMALL = CacheSettings(width=64, height=48)


def ignore(_line):
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = data_folder(tmp_path_factory.mktemp("data"))
    TREES["m3svd"](root / "m3svd")
    return root


@pytest.fixture(scope="module")
def sources(data, tmp_path_factory):
    return training_sources(data, tmp_path_factory.mktemp("cache"), SMALL, ignore)


@pytest.fixture(scope="module")
def packed(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs")
    assert pack(sources, SMALL, folder, 10_000_000) == 94
    return folder


def test_a_pack_holds_what_the_datasets_did(sources, packed, tmp_path):
    unpacked = {source.name: source for source in training_sources(packed, tmp_path, SMALL, ignore)}
    assert unpacked.keys() == {source.name for source in sources}
    for source in sources:
        other = unpacked[source.name]
        for k, item in enumerate(source.items):
            assert dataclasses.replace(other.items[k], offset=0) == dataclasses.replace(
                item, offset=0
            )
            difference = np.abs(source.visible(k).astype(int) - other.visible(k))
            assert difference.mean() < 4.0
            for plane in ("infrared", "labels"):
                mine, its = getattr(source, plane)(k), getattr(other, plane)(k)
                assert (mine is None) == (its is None)
                if mine is not None:
                    assert np.abs(mine.astype(int) - its).mean() < (
                        3.0 if plane == "infrared" else 1e-9
                    )
    lines = []
    training_sources(packed, tmp_path, SMALL, lines.append)
    assert lines == []  # unpacked once


def test_a_pack_takes_the_quality_that_fits_or_says_that_none_does(sources, tmp_path):
    pack(sources, SMALL, tmp_path, 10_000_000)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.pack"))
    assert pack(sources, SMALL, tmp_path, size - 1) < 94
    with pytest.raises(DatasetError, match=r"at quality 78; accepted: at most 0\.0 MB"):
        pack(sources, SMALL, tmp_path, 1000)
    assert not list(tmp_path.glob("*.pack"))


def test_a_pack_of_another_size_or_a_damaged_one_is_named(packed, tmp_path):
    with pytest.raises(DatasetError, match="packed for 64x48, and this stage takes 32x24"):
        training_sources(packed, tmp_path, CacheSettings(width=32, height=24), ignore)
    (tmp_path / "camvid-train.pack").write_bytes(b"no pack")
    with pytest.raises(DatasetError, match=r"camvid-train\.pack is damaged"):
        training_sources(tmp_path, tmp_path, SMALL, ignore)


def test_the_data_are_packed_at_the_size_of_base(data, tmp_path):
    command = [sys.executable, SCRIPT, "pack", data, tmp_path / "packs"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "MB, JPEG quality 94" in said
    assert sorted(path.name for path in (tmp_path / "packs").iterdir()) == [
        "camvid-train.pack", "imagenet.safetensors", "m3svd-train.pack", "msrs-train.pack",
    ]  # fmt: skip
    settings = CacheSettings(width=480, height=360)
    (camvid, *_) = training_sources(tmp_path / "packs", tmp_path, settings, ignore)
    assert camvid.visible(0).shape == (360, 480, 3)


def test_a_run_leaves_a_model_in_few_small_files(packed, tmp_path):
    refiner = dataclasses.replace(SMALL_REFINED.refiner, camera=1)
    small = dataclasses.replace(SMALL_REFINED, refiner=refiner)
    run_folder(tmp_path / "run", small)
    results = (tmp_path / "run" / "model").rename(tmp_path / "results")
    for stage in STAGES:
        loop = {"steps": 1, "checkpoint_minutes": 1e-3, "precision": "bfloat16", "compile": True}
        write_recipe(tmp_path / "recipes", stage, loop=loop)
    process = start(SCRIPT, "train", packed, results, "--minutes", "0.1", "--device", "cpu",
                    "--work", tmp_path / "work", "--config", tmp_path / "recipes")  # fmt: skip
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "refine: " in said
    assert "% of its time, step" in said
    assert "samples/s" in said
    assert "minutes, exit status 0" in said
    files = list(results.iterdir())
    assert len(files) <= 8
    assert max(path.stat().st_size for path in files) <= 15_000_000
    assert {"config.json", "shards.json", "sheet.jpg"} <= {path.name for path in files}
    assert MagicFuse.from_pretrained(results).config.trained
