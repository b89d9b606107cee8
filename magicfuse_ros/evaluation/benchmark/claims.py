"""The benchmark's claims: ratios of figures of one run, each beside the limit it has to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from magicfuse_ros.evaluation.benchmark.engine_runs import REFERENCE_STEPS, VGA

Results = Mapping[str, Any]


class Claim(NamedTuple):
    """One figure that the run has to show, `value` being None where it was not measured."""

    name: str
    value: float | None
    unit: str  # of the value and of the limit; `×` for a ratio
    least: float | None = None  # a figure without a limit is told and not judged
    most: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the claim holds; None where there is no value or no limit."""
        if self.value is None or (self.least is None and self.most is None):
            return None
        above = self.least is None or self.value >= self.least
        return above and (self.most is None or self.value <= self.most)


def claims(results: Results) -> list[Claim]:
    """Work out every claim, as far as `results` has the figures for it.

    Rows are those at the model's own resolution; the node's, a VGA camera at 30 Hz.
    """
    engine = results.get("engine") or {}
    survey = engine.get("survey") or {"resolution": None, "steps": None, "backends": [None]}
    rows = [row for row in engine.get("engine", ()) if row["resolution"] == survey["resolution"]]
    same = {"backend": survey["backends"][0], "steps": survey["steps"]}
    default = _first(rows, **same, parallel="auto")
    in_turn = _first(rows, **same, parallel="off") if default.get("side_by_side") else {}
    reference = _first(rows, backend="eager", steps=REFERENCE_STEPS, parallel="off")
    peer = _first(engine.get("peers", ()), backend=same["backend"])
    node = _first(results.get("node") or (), camera=VGA, rate_hz=30.0)

    def told(figure: Callable[[], float]) -> float | None:
        try:
            return float(figure())
        except (KeyError, TypeError):  # the run has not measured what it needs
            return None

    age = told(lambda: node["age_ms"]["p95"] / default["ms"]["p95"])
    faster = told(lambda: reference["ms"]["p50"] / default["ms"]["p50"])
    to_peer = told(lambda: default["ms"]["p50"] / peer["ms"]["p50"])
    to_in_turn = told(lambda: default["ms"]["p50"] / in_turn["ms"]["p50"])
    cold, warm = told(lambda: default["cold_start_s"]), told(lambda: default["start_s"])
    memory = told(lambda: node["memory_mb"]["steady"])
    slope = told(lambda: results["soak"]["drift"]["memory_slope_mb_per_hour"])
    return [
        Claim("fps out, VGA at 30 Hz", told(lambda: node["fps_out"]), "fps", least=10.0),
        Claim("age at publish, p95, to the engine's p95", age, "×", most=1.5),
        Claim(f"faster than {REFERENCE_STEPS} steps, eager, Ψ then Φ", faster, "×", least=30.0),
        Claim("time of a whole frame to SegFormer-B0's network alone", to_peer, "×", most=2.5),
        Claim("Ψ and Φ side by side to in turn", to_in_turn, "×"),
        Claim("ROS's share of a frame", told(lambda: node["ros_percent"]), "%", most=10.0),
        Claim("cold start to first fused frame, nothing compiled yet", cold, "s"),
        Claim("warm start to first fused frame", warm, "s", most=5.0),
        Claim("steady memory of the node", memory, "MB", most=800.0),
        Claim("memory's slope over the soak", slope, "MiB/h"),
    ]


def _first(rows: Iterable[Results], **wanted: object) -> Results:
    """Return the first row that has these values; an empty mapping where there is none."""
    matching = (row for row in rows if all(row.get(key) == wanted[key] for key in wanted))
    return next(matching, {})
