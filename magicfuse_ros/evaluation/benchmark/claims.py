"""The benchmark's claims: ratios of figures of one run, each beside the limit it has to keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from magicfuse_ros.evaluation.benchmark.engine_runs import REFERENCE_STEPS, VGA

Results = Mapping[str, Any]


class Claim(NamedTuple):
    """One figure that the run has to show.

    `value` is None where the run did not measure what it needs, and `limit` where the figure is
    told and not judged. `unit` is that of both, `×` for a ratio; `basis` says which figures of the
    run the value comes from.
    """

    name: str
    value: float | None
    unit: str
    basis: str
    relation: Literal["≥", "≤"] = "≤"
    limit: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the claim holds; None where there is no value or no limit."""
        if self.value is None or self.limit is None:
            return None
        return self.value >= self.limit if self.relation == "≥" else self.value <= self.limit


def claims(results: Results) -> list[Claim]:
    """Work out every claim, as far as `results` has the figures for it."""
    engine = results.get("engine") or {}
    own = engine.get("survey", {}).get("resolution")
    rows = [row for row in engine.get("engine", ()) if row["resolution"] == own]
    default = _first(rows, asked="auto")
    backend = str(default.get("backend", "")).partition(" ")[0]
    reference = _first(rows, asked="eager", steps=REFERENCE_STEPS, parallel="off")
    in_turn = _first(rows, asked=backend, steps=default.get("steps"), parallel="off")
    if not default.get("side_by_side"):
        in_turn = {}
    peer = _first(engine.get("peers", ()), asked=backend)
    node = _first(results.get("node") or (), camera=list(VGA), rate_hz=30.0)
    p50 = _get(default, "ms", "p50")
    share = _get(node, "ros_share")
    return [
        Claim(
            "fps out, VGA at 30 Hz", _get(node, "fps_out"), "fps",
            "node level: MagImg, mask and confidence at VGA", "≥", 10.0,
        ),
        Claim(
            "age at publish, p95, to the engine's p95",
            _ratio(_get(node, "age_ms", "p95"), _get(default, "ms", "p95")), "×",
            "VGA at 30 Hz; the engine alone, frames back to back", "≤", 1.5,
        ),
        Claim(
            f"faster than {REFERENCE_STEPS} steps, eager, Ψ then Φ",
            _ratio(_get(reference, "ms", "p50"), p50), "×",
            "p50, same model, resolution and frames", "≥", 30.0,
        ),
        Claim(
            "time to SegFormer-B0's", _ratio(p50, _get(peer, "ms", "p50")), "×",
            "p50, same backend and input; the whole frame here, the network alone there", "≤", 1.0,
        ),
        Claim(
            "Ψ and Φ side by side to in turn", _ratio(p50, _get(in_turn, "ms", "p50")), "×",
            "p50; below 1 side by side is faster",
        ),
        Claim(
            "ROS's share of a frame", None if share is None else share * 100.0, "%",
            "decode, encode and publish, VGA at 30 Hz", "≤", 10.0,
        ),
        Claim(
            "cold start to first fused frame", _get(default, "cold_start_s", "total"), "s",
            "from starting the process, nothing compiled yet",
        ),
        Claim(
            "warm start to first fused frame", _get(default, "start_s", "total"), "s",
            "from starting the process, artifact cache filled", "≤", 5.0,
        ),
        Claim(
            "steady memory of the node", _get(node, "memory_mb", "steady"), "MB",
            "resident, VGA at 30 Hz", "≤", 800.0,
        ),
        Claim(
            "memory's slope over the soak",
            _get(results, "soak", "drift", "memory_slope_mb_per_hour"), "MiB/h",
            "least squares after the warm-up",
        ),
    ]  # fmt: skip


def _first(rows: Iterable[Results], **wanted: object) -> Results:
    """Return the first row that has these values; an empty mapping where there is none."""
    matching = (row for row in rows if all(row.get(key) == wanted[key] for key in wanted))
    return next(matching, {})


def _get(row: Results, *path: str) -> float | None:
    value: Any = row
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below
