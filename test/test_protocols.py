"""The paper's experiments from end to end: small pictures, and a small random model."""

import json
import re

import cv2
import dataset_trees as trees
import numpy as np
import pytest
import torch
import yaml
from support.small_models import SMALL_FEW_STEP

from magicfuse_ros.cli import main
from magicfuse_ros.commands.exit_status import FAILED
from magicfuse_ros.evaluation.fusion_metrics import FUSION_METRICS, fusion_scores
from magicfuse_ros.evaluation.metrics import grey
from magicfuse_ros.evaluation.protocol import MODELS, protocols, read_protocol
from magicfuse_ros.evaluation.segmentation import translation
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.training.infrared import common_infrared_scale

SHIPPED = {path.stem: path for path in protocols()}
TINY = {"steps": 1, "batch": 1, "learning_rate": 1.0e-4, "size": [32, 32]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for layout in ("mfnet", "cityscapes"):
        trees.TREES[layout](root / layout)
    return root


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """The protocols that ship, with a SegFormer that is trained for a step on two pictures."""
    folder = tmp_path_factory.mktemp("protocols")
    for path in SHIPPED.values():
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "segformer" in content:
            content |= {"segformer": TINY, "pictures": content["pictures"][-2:]}
            ablations = content.get("sweep", {}).get("ablations")
            if ablations:
                content["sweep"]["ablations"] = ablations[-2:]
        if "effects" in content.get("sweep", {}):
            content["sweep"] = {"effects": ["haze"], "strengths": [0.0, 1.0]}
        (folder / path.name).write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def options(data, tmp_path_factory):
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "small"
    MagicFuse.from_config(SMALL_FEW_STEP).eval().save_pretrained(weights)
    return [
        "--model", str(weights), "--data", str(data), "--device", "cpu", "--backend", "eager",
        "--cache", str(tmp_path_factory.mktemp("cache")),
    ]  # fmt: skip


def evaluate(*words):
    return main(["evaluate", *map(str, words)])


def rows_of(path, protocol):
    tables = json.loads(path.read_text())["tables"][str(protocol)]
    return [{next(iter(row.values())): row for row in table["rows"]} for table in tables]


def recorded():
    """The visible picture, (H, W, 3) RGB, and the infrared on the common scale of the one scene."""
    heat = trees.infrared(0)
    visible = np.ascontiguousarray(trees.visible(0)[..., ::-1])
    return visible, common_infrared_scale([heat]).apply(heat)


# From end to end


def test_the_report_has_every_protocol_on_one_page_of_its_own(options, recipes, tmp_path):
    output = tmp_path / "results.md"
    assert evaluate("report", recipes, *options, "--output", output) == 0
    text, page = output.read_text(), output.with_suffix(".html").read_text()
    for name, path in SHIPPED.items():
        title = read_protocol(str(path)).title
        heading = f"\n### {title}\n"
        assert heading in text
        assert f"<h2>{title}</h2>" in page
        section = text[text.index(heading) + 1 :].partition("\n### ")[0]
        missing = name in {"table4", "table5"}  # FMB is not there
        assert ("Not measured: the data folder has none of fmb." in section) == missing
        assert ("| " in section) == (not missing)
    assert "\n### Confidence\n" in text
    assert "Not measured: no image of" not in text
    assert "NOT TRAINED, 2 step(s)" in text
    # It needs nothing else: every picture is in it.
    sources = re.findall(r'(?:src|href)="([^"]{5})', page)
    assert set(sources) == {"data:"}
    assert page.count("data:image/svg+xml") == 3  # τ, haze, confidence
    assert page.count("data:image/jpeg") == 1


def test_the_report_says_what_the_data_cannot_tell(options, recipes, tmp_path):
    """Pairs with boxes and without labels: what needs labels is left out, and named."""
    trees.msrs(tmp_path / "data" / "msrs")
    (tmp_path / "some").mkdir()
    for name in ("table3.yaml", "table6.yaml"):
        (tmp_path / "some" / name).write_text((recipes / name).read_text())
    more = ("--data", tmp_path / "data", "--output", tmp_path / "results.md")
    assert evaluate("report", tmp_path / "some", *options, *more) == 0
    text = (tmp_path / "results.md").read_text()
    assert "### Confidence\n\nNot measured: fewer than two images are labelled by hand." in text
    said = "Not measured: no image of msrs has infrared and labels."
    assert f"### Table 3: segmentation on MFNet\n\n{said}" in text
    assert "| Model IV (restored only), MagImg" in text
    assert str(tmp_path) not in text


def test_a_protocol_scores_controls_as_they_are_and_quotes_the_paper(options, tmp_path, capsys):
    output = tmp_path / "table2.json"
    assert evaluate("protocol", "table2", *options, "--output", output) == 0
    ((rows),) = rows_of(output, "table2")
    visible, infrared = recorded()
    names = tuple(read_protocol("table2").metrics)
    for name, picture in (
        ("visible alone, as recorded", grey(visible)),
        ("real infrared alone", infrared),
    ):
        expected = fusion_scores(grey(visible), infrared, picture, names)
        for metric in names:
            value = rows[name][FUSION_METRICS[metric].column.name]
            assert (value is None) == np.isnan(expected[metric])
            assert value is None or value == pytest.approx(expected[metric])
    for name in ("MagImg", "enhanced (Ψ)"):
        shift = rows[name]["PSNR, fusion convention (dB)"] - rows[name]["PSNR, true (dB)"]
        assert shift == pytest.approx(48.1308, abs=1e-3)
    quoted = rows["Text-IF (quoted)"]
    assert (quoted["SSIM"], quoted["images"], quoted["VIF"]) == (0.52, None, None)
    assert rows["MagImg"]["images"] == 1
    assert "Measured on mfnet. Input: mixed." in capsys.readouterr().out


def test_a_sweep_has_a_row_a_setting(options, tmp_path):
    output = tmp_path / "fig7.json"
    assert evaluate("protocol", "fig7", *options, "--output", output) == 0
    fusion, masks = rows_of(output, "fig7")
    taus = [f"τ = {tau:g}" for tau in (0.0, 0.2, 0.4, 0.6, 0.8)]
    assert list(fusion) == [f"{tau}, MagImg" for tau in taus]
    assert list(masks) == [f"{tau}, mask of the engine" for tau in taus]
    # The random S says person somewhere, where Eq. 11 lets τ limit w.
    assert len({row["EN (bit)"] for row in fusion.values()}) > 1


def test_models_of_the_ablations_differ(options, tmp_path):
    output = tmp_path / "table6.json"
    assert evaluate("protocol", "table6", *options, "--output", output) == 0
    (rows,) = rows_of(output, "table6")
    ours = [row for name, row in rows.items() if "quoted" not in name]
    assert [row["picture"] for row in ours] == [
        f"{name}, MagImg" for name in (*list(MODELS.values())[1:], MODELS["full"])
    ]
    assert len({row["MI (bit)"] for row in ours}) >= 4


def test_model_four_is_the_restored_picture_whatever_f_makes_of_it(options, tmp_path):
    content = yaml.safe_load(SHIPPED["table6"].read_text(encoding="utf-8"))
    content |= {"pictures": ["enhanced", "magimg"], "sweep": {"ablations": ["restore_only"]}}
    mine, output = tmp_path / "mine.yaml", tmp_path / "mine.json"
    mine.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert evaluate("protocol", mine, *options, "--output", output) == 0
    (rows,) = rows_of(output, mine)
    restored, fused = (row for name, row in rows.items() if "quoted" not in name)
    assert {**restored, "picture": ""} == {**fused, "picture": ""}


def test_a_peer_stands_in_the_same_table(options, tmp_path, capsys):
    folder, output = tmp_path / "peer", tmp_path / "peer.json"
    trees.write(folder / "00003D.png", trees.visible(0))
    peer = ("--peer", f"Copy={folder}")
    assert evaluate("protocol", "table2", *options, *peer, "--output", output) == 0
    (rows,) = rows_of(output, "table2")
    assert {**rows["Copy"], "picture": ""} == {**rows["visible alone, as recorded"], "picture": ""}

    trees.write(folder / "00003D.png", trees.visible(0, width=128))
    assert evaluate("protocol", "table2", *options, *peer) == FAILED
    assert "00003D.png is 128x48 but" in capsys.readouterr().err
    (folder / "00003D.png").rename(folder / "other.png")
    assert evaluate("protocol", "table2", *options, *peer) == FAILED
    assert "00003D is missing; Copy needs one of every scene" in capsys.readouterr().err
    assert evaluate("protocol", "fig7", *options, *peer) == FAILED
    assert "peers go with a protocol without a sweep" in capsys.readouterr().err


def test_masks_are_told_by_the_names_of_classes():
    drive, mfnet, fmb = (LabelSet.load(name) for name in ("drive", "mfnet", "fmb"))

    def told(said, scored, name):
        return scored.names()[translation(said, scored)[said.id_of(name)]]

    same = ("car", "person", "bike")
    assert [told(drive, mfnet, name) for name in same] == list(same)
    assert {told(drive, mfnet, name) for name in ("road", "fence", "unlabeled")} == {"unlabeled"}
    assert told(drive, fmb, "road") == "road"
    assert told(drive, fmb, "fence") == "background"
    for labels in (drive, mfnet, fmb, LabelSet.load("cityscapes")):
        ids = range(len(labels))
        assert translation(labels, labels)[list(ids)].tolist() == list(ids)


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ["mfnot"]}, "data is 'mfnot'; accepted: msrs, mfnet"),
        ({"metrics": ["FID"]}, "metrics is 'FID'; accepted: EN"),
        ({"metrics": []}, "at least one of them"),
        ({"condition": "fog"}, "condition is 'fog'; accepted: none"),
        ({"pictures": ["xray"]}, "xray"),
        ({"sweep": {"tau": [1.5]}}, "is 1.5; accepted: 0 to 1"),
        ({"sweep": {"tau": [0.5], "steps": [1]}}, "one of tau, steps, ablations or effects"),
        ({"sweep": {"effects": ["haze"]}}, "some where effects are given"),
        ({"fusion_quoted": {"columns": ["EN"], "rows": [["X", [1.0, 2.0]]]}}, "a figure for each"),
        ({"fusion_quoted": {"columns": ["FID"], "rows": []}}, "quoted columns is ['FID']"),
        ({"note": 3}, "accepted: text"),
        ({"extra": 3}, "unknown keys ['extra']"),
    ],
)
def test_a_wrong_protocol_is_named(change, message, tmp_path):
    content = {"title": "T", "data": ["mfnet"], "labels": "mfnet", "pictures": ["magimg"]}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**content, "metrics": ["EN"], **change}))
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_protocol(str(path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["protocol", "table9"], "protocol is 'table9'; accepted: table2, table3"),
        (["protocol", "table4"], "the data folder has none of fmb"),
        (["protocol", "table2", "--peer", "b"], "--peer is b; accepted: NAME=DIR"),
        (["report", "--output", "results.txt"], "a report needs a .md file"),
    ],
)
def test_wrong_words_end_in_one_clear_line(words, message, options, capsys):
    assert evaluate(*words, *options) == FAILED
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("magicfuse evaluate: ")
    assert message in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["protocol", "--data", "x"], "evaluate protocol: error: the following arguments are"),
        (["protocol", "table2"], "protocol: error: the following arguments are required: --data"),
        (["people", "--limit", "-1"], "argument --limit: '-1'; accepted: 0 or more"),
        (["people", "--steps", "0"], "argument --steps: '0'; accepted: 1 or more"),
        (["sheet", "--limit", "0"], "argument --limit: '0'; accepted: 1 or more"),
        (["people", "--data", "x", "--peer", "A=b"], "unrecognized arguments: --peer A=b"),
        (["people", "--data", "x", "--beside", "y"], "unrecognized arguments: --beside y"),
        (["people", "table2", "--data", "x"], "unrecognized arguments: table2"),
        (["people", "--data", "x", "--quoted", "table2"], "unrecognized arguments: --quoted"),
        (["fusion", "--visible", "a"], "are required: --fused, --infrared"),
        (["report", "--data", "x"], "the following arguments are required: --output"),
    ],
)
def test_what_a_subject_needs_or_does_not_take_is_told_with_its_usage(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        evaluate(*words)
    assert end.value.code == FAILED
    assert message in capsys.readouterr().err


# Fused pictures in folders


@pytest.fixture
def folders(tmp_path):
    for k, name in enumerate(("1", "2")):
        trees.write(tmp_path / "visible" / f"{name}.png", trees.visible(k))
        trees.write(tmp_path / "infrared" / f"{name}.jpg", trees.infrared(k))
        trees.write(tmp_path / "mean" / f"{name}.png", trees.visible(k) // 2 + 60)
        trees.write(tmp_path / "copy" / f"{name}.png", trees.visible(k))
    return tmp_path


def score(folders, *more):
    of = [folders / name for name in ("mean", "copy")]
    pair = ("--visible", folders / "visible", "--infrared", folders / "infrared")
    return evaluate("fusion", "--fused", *of, *pair, *more)


def test_folders_of_fused_pictures_are_scored(folders):
    output = folders / "scores.json"
    assert score(folders, "--quoted", "table2", "--output", output) == 0
    (rows,) = rows_of(output, "fusion")
    expected = []
    for name in ("1", "2"):
        heat = cv2.imread(str(folders / "infrared" / f"{name}.jpg"), cv2.IMREAD_GRAYSCALE)
        light, fused = (
            grey(cv2.cvtColor(cv2.imread(str(folders / of / f"{name}.png")), cv2.COLOR_BGR2RGB))
            for of in ("visible", "mean")
        )
        expected.append(fusion_scores(light, heat, fused, tuple(FUSION_METRICS)))
    for metric, (column, _) in FUSION_METRICS.items():
        mean = np.mean([each[metric] for each in expected])
        assert rows["mean"][column.name] == pytest.approx(mean, abs=2e-3), metric
    assert rows["mean"]["images"] == 2
    assert list(rows)[:3] == ["mean", "copy", "TarDAL (quoted)"]


def test_fused_pictures_without_partners_or_of_other_sizes_are_named(folders, capsys):
    def line():
        assert score(folders) == FAILED
        return capsys.readouterr().err

    trees.write(folders / "copy" / "2.png", trees.visible(1, width=96))
    assert "2.png is 96x48 but" in line()
    (folders / "copy" / "2.png").rename(folders / "copy" / "3.png")
    assert f"{folders / 'copy'} has no picture named 2" in line()
    trees.write(folders / "copy" / "2.png", trees.visible(1))
    assert f"{folders / 'visible'} has no picture named 3" in line()
    (folders / "copy" / "3.png").unlink()
    (folders / "infrared" / "1.jpg").unlink()
    assert f"{folders / 'infrared'} has no picture named 1" in line()
