"""The public pairs that training uses, where they are present."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from support.small_models import SMALL_FEW_STEP, stored

from magicfuse_ros.cli import main
from magicfuse_ros.training.datasets.cache import open_cache
from magicfuse_ros.training.datasets.frames import Source
from magicfuse_ros.training.datasets.label_maps import CANONICAL
from magicfuse_ros.training.datasets.layouts import find_sources

ROOT = Path(
    os.environ.get("MAGICFUSE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
)
pytestmark = pytest.mark.skipif(
    not (ROOT / "msrs").is_dir(),
    reason="needs the MSRS, RoadScene and CamVid images: set MAGICFUSE_DATA to their folder",
)
COUNTS = {
    "msrs/train": 241, "msrs/val": 60, "roadscene/train": 161, "roadscene/val": 20,
    "llvip/train": 32, "camvid/train": 367, "camvid/val": 101,
}  # fmt: skip


def few(source, count=6):
    """Frames from all over a source."""
    step = max(1, len(source.frames) // count)
    return Source(source.name, source.frames[::step], source.classes)


def test_every_file_has_its_pair_and_counts_are_as_described():
    sources = [s for split in ("train", "val") for s in find_sources(ROOT, split)]
    counts = {source.name: len(source.frames) for source in sources}
    assert {name: counts[name] for name in COUNTS} == COUNTS
    assert {f.group for s in sources if s.name == "m3svd/val" for f in s.frames} == {"0117_1620"}


def test_a_few_of_each_decode_to_aligned_planes_on_one_infrared_scale(tmp_path):
    medians = {}
    for source in find_sources(ROOT, "train", ["msrs", "roadscene", "llvip"]):
        cached = open_cache(few(source), tmp_path)
        for index, item in enumerate(cached.items):
            assert cached.visible(index).shape == (item.height, item.width, 3)
            median = float(np.median(cached.infrared(index))) / 255.0
            medians.setdefault(source.name, []).append(median)
    # As recorded, the means are 0.09, 0.52 and 0.11.
    means = [float(np.mean(values)) for values in medians.values()]
    assert min(means) > 0.05
    assert max(means) < 0.35


def test_weak_masks_of_people_are_hotter_than_what_surrounds_them(tmp_path):
    (source,) = find_sources(ROOT, "val", ["msrs"])
    cached = open_cache(few(source, 15), tmp_path)
    differences = []
    for index in range(len(cached)):
        person = cached.labels(index) == CANONICAL.index("person")
        if person.sum() >= 30:
            near = cv2.dilate(person.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
            heat = cached.infrared(index)
            differences.append(float(heat[person].mean()) - float(heat[near & ~person].mean()))
    assert len(differences) >= 5
    assert np.mean(differences) > 15.0
    assert np.mean(np.array(differences) > 0) > 0.85


def test_camvid_train_shows_every_class(tmp_path):
    (source,) = find_sources(ROOT, "train", ["camvid"])
    cached = open_cache(few(source, 10), tmp_path)
    seen = {int(i) for k in range(len(cached)) for i in np.unique(cached.labels(k))}
    assert {CANONICAL[i] for i in seen - {255}} == set(source.classes.values())


def test_a_protocol_runs_on_the_real_pairs(tmp_path, capsys):
    """Fusion scores and masks on MSRS, whose two pictures are unlike each other."""
    stored(SMALL_FEW_STEP, tmp_path)
    protocol = {
        "title": "few pairs", "data": ["mfnet", "msrs"], "labels": "mfnet", "masks": True,
        "pictures": ["magimg", "visible", "real_infrared"], "metrics": ["EN", "MI", "SSIM"],
    }  # fmt: skip
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(protocol), encoding="utf-8")
    words = [
        "evaluate", "protocol", tmp_path / "few.yaml", "--model", tmp_path / "small",
        "--data", ROOT, "--cache", tmp_path, "--limit", 4, "--backend", "eager", "--device", "cpu",
        "--output", tmp_path / "few.json",
    ]  # fmt: skip
    assert main([*map(str, words)]) == 0
    ((fusion, masks),) = json.loads((tmp_path / "few.json").read_text())["tables"].values()
    made, visible, infrared = fusion["rows"]
    assert (made["images"], visible["images"]) == (4, 4)
    assert visible["SSIM"] == pytest.approx(infrared["SSIM"])  # the mean of 1 and the same other
    assert visible["MI (bit)"] > visible["EN (bit)"] > infrared["EN (bit)"] > 3.0
    assert "The labels were made by networks" in masks["note"]
    assert masks["rows"][0]["unlabeled"] is not None
    assert "Measured on msrs, in the place of mfnet." in capsys.readouterr().out
