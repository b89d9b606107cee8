"""The reliability of the confidence: against torchmetrics, and with a known temperature."""

import dataset_trees as trees
import numpy as np
import pytest
import torch
from support.small_models import SMALL_FEW_STEP

from magicfuse_ros.evaluation.calibration import Reliability, calibration, tempered
from magicfuse_ros.evaluation.scenes import ValidationSet
from magicfuse_ros.evaluation.subject import Evaluation
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.runtime.contract import EngineSettings, FuseResult
from magicfuse_ros.training.datasets.frames import DatasetError


@pytest.fixture
def overconfident():
    """Pixels whose confidence is that of a temperature of 2: its log-odds are twice too large."""
    rng = np.random.default_rng(0)
    confidence = rng.integers(150, 254, (400, 500)).astype(np.uint8)
    right = rng.random(confidence.shape) < tempered(2.0)[confidence]
    return confidence, right


def test_the_error_is_torchmetrics(overconfident):
    from torchmetrics.functional.classification import binary_calibration_error

    confidence, right = overconfident
    counted = Reliability()
    counted.add(confidence, right)
    said = torch.from_numpy(tempered(1.0)[confidence].ravel())
    expected = binary_calibration_error(said, torch.from_numpy(right.ravel()).int(), n_bins=15)
    print(f"ECE: ours {counted.error():.6f}, torchmetrics {float(expected):.6f}")
    assert counted.error() == pytest.approx(float(expected), abs=1e-4)


def test_the_temperature_is_found_and_mends_the_error(overconfident):
    confidence, right = overconfident
    counted = Reliability()
    counted.add(confidence, right)
    found = counted.fitted()
    assert found == pytest.approx(2.0, rel=0.05)
    assert counted.error() > 0.1
    assert counted.error(found) < 0.01


def test_a_temperature_keeps_the_order_and_one_changes_nothing():
    assert tempered(1.0)[1:255] == pytest.approx(np.arange(1, 255) / 255.0)
    for temperature in (0.3, 1.0, 5.0):
        assert (np.diff(tempered(temperature)) > 0.0).all()
    assert (tempered(5.0)[200:] < tempered(1.0)[200:]).all()


class Sure:
    """An engine that says `road` everywhere and is always as sure."""

    backend_name = "oracle"
    settings = EngineSettings()

    def __init__(self, road, confidence):
        self._road, self._confidence = road, confidence

    def fuse(self, frame, extras):
        assert extras == {"infrared", "enhanced"}
        mask, sure = (np.full(frame.shape[:2], k, np.uint8) for k in (self._road, self._confidence))
        return FuseResult(frame, mask, sure, mask, frame, {"fuse": 1.0})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MagicFuse.from_config(SMALL_FEW_STEP).eval()


def evaluation(root, cache, model):
    scenes = ValidationSet(root, cache, model.config, model.labels)
    return Evaluation(engine=Sure(model.labels.id_of("road"), 204), model=model, scenes=scenes)


def test_the_engines_confidence_is_judged_on_images_that_were_not_fitted(tmp_path, model):
    for layout in ("camvid", "cityscapes"):
        trees.TREES[layout](tmp_path / layout)
    found = calibration(evaluation(tmp_path, tmp_path / "cache", model))
    (table,) = found.tables
    names = [column.name for column in table.columns]
    for row in table.rows:
        cells = dict(zip(names, row, strict=True))
        # Of Cityscapes' tree a third of the known pixels is road, of CamVid's too.
        assert cells["mean confidence (%)"] == pytest.approx(80.0)
        assert cells["right pixels (%)"] == pytest.approx(100.0 / 3, abs=3.0)
        assert cells["ECE before (%)"] == pytest.approx(80.0 - cells["right pixels (%)"])
        assert cells["ECE after (%)"] < cells["ECE before (%)"] - 20.0
    assert set(found.curves["confidence"]) == {
        "share of right pixels, none",
        "share of right pixels, mixed",
    }


def test_one_image_is_too_few(tmp_path, model):
    trees.camvid(tmp_path / "camvid")
    with pytest.raises(DatasetError, match="fewer than two images"):
        calibration(evaluation(tmp_path, tmp_path / "cache", model))
