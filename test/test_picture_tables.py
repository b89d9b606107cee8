"""The tables of people, heat and nights, on scenes whose figures are known beforehand."""

import dataclasses

import cv2
import numpy as np
import pytest

from magicfuse_ros.evaluation.picture_tables import heat_table, night_table, people_table
from magicfuse_ros.evaluation.scenes import Scene
from magicfuse_ros.evaluation.subject import Products

PERSON = (40, 20, 60, 70)


def scene(*, night=False, level=100, boxes=(("person", PERSON),)):
    """A scene with texture, whose person is warm by a gradient."""
    rng = np.random.default_rng(0)
    grain = cv2.GaussianBlur(rng.normal(0.0, 20.0, (96, 128)), (0, 0), 1.0)
    light = np.clip(level + grain, 0, 255).astype(np.uint8)
    visible = cv2.cvtColor(light, cv2.COLOR_GRAY2RGB)
    x0, y0, x1, y1 = PERSON
    infrared = np.full((96, 128), 50, np.uint8)
    infrared[y0:y1, x0:x1] = np.linspace(120, 220, y1 - y0, dtype=np.uint8)[:, None]
    return Scene(
        source="set/val", name="1", condition="none", recipe="none", night=night, visible=visible,
        degraded=visible, infrared=infrared, labels=None, boxes=boxes,
    )  # fmt: skip


@dataclasses.dataclass
class Shown:
    """Stands for an `Evaluation`: one scene, and what an engine makes of it."""

    scene: Scene
    make: object
    by_engine: str = "Made by hand."
    by_model: str = "Made by hand."

    def inference(self):
        return self

    def light_of_heat(self, image):
        lit, unlit, _ = self.make(image)
        return np.abs(lit[..., 0].astype(np.float32) - unlit[..., 0])

    def under(self, condition, needs, purpose):
        del needs, purpose
        yield dataclasses.replace(self.scene, condition=condition)

    def fuse(self, image):
        magimg, enhanced, infrared = self.make(image)
        empty = np.zeros(image.shape[:2], np.uint8)
        return Products(magimg, empty, empty, infrared, enhanced, {})


def cells(table, row=0):
    return dict(zip((column.name for column in table.columns), table.rows[row], strict=True))


def test_a_person_that_is_lifted_keeps_its_details():
    shown = scene()

    def lift(image):
        x0, y0, x1, y1 = PERSON
        magimg = image.copy()
        magimg[y0:y1, x0:x1] += 40  # brighter by the same everywhere: only its edge is new
        return magimg, image, shown.infrared

    row = cells(people_table(Shown(shown, lift)))
    assert (row["input"], row["people"]) == ("none, day", 1)
    assert row["detail, enhanced"] == pytest.approx(1.0)
    assert 0.5 < row["detail, MagImg"] < 1.0
    assert row["contrast, MagImg"] - row["contrast, enhanced"] == pytest.approx(40.0, abs=0.1)
    assert row["shape of the infrared"] == pytest.approx(1.0)


def test_a_person_that_is_painted_over_has_no_details():
    shown = scene(night=True)

    def paint(image):
        return np.full_like(image, 255), image, np.full_like(shown.infrared, 90)

    row = cells(people_table(Shown(shown, paint)))
    assert row["input"] == "none, night"
    assert row["detail, MagImg"] == 0.0
    assert row["shape of the infrared"] == 0.0


def test_light_where_nobody_is_is_counted():
    def leak(image):
        magimg = image.copy()
        magimg[80:96, 100:128] += 60
        return magimg, image, image[..., 0]

    row = cells(heat_table(Shown(scene(boxes=()), leak)))
    assert row["outside boxes, mean"] == pytest.approx(60.0 * 16 * 28 / (96 * 128), abs=0.01)
    assert row["images without people"] == 1
    assert 20.0 < row["worst window"] == row["worst without vehicles"] <= 60.0
    assert row["images above 8 (%)"] == 100.0
    parked = cells(heat_table(Shown(scene(boxes=((2, (96, 76, 128, 96)),)), leak)))
    assert parked["worst window"] == row["worst window"]
    assert parked["worst without vehicles"] == 0.0
    with_people = cells(heat_table(Shown(scene(), leak)))
    assert with_people["images without people"] == 0


def test_a_night_is_measured_beside_clahe_and_a_day_is_not():
    def doubled(image):
        return image * 2, image * 2, image[..., 0]

    table = night_table(Shown(scene(night=True, level=25), doubled))
    rows = {row[0]: cells(table, k) for k, row in enumerate(table.rows)}
    assert set(rows) == {"input", "CLAHE", "enhanced", "MagImg"}
    medians = {name: row["median luminance"] for name, row in rows.items()}
    assert medians["MagImg"] == pytest.approx(2.0 * medians["input"], abs=1.0)
    assert rows["input"]["lamps (% of the picture)"] == 0.0
    assert night_table(Shown(scene(level=25), doubled)).rows == ()
