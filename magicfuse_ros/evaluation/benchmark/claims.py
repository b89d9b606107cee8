"""The benchmark's claims: ratios of figures from one run, each beside the limit it has to keep."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from magicfuse_ros.evaluation.benchmark.plan import REFERENCE_STEPS, VGA

Results = Mapping[str, Any]

_HOLDS: dict[str, Callable[[float, float], bool]] = {"≥": operator.ge, "≤": operator.le}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One figure that the run has to show.

    Attributes
    ----------
    name
        What it is.
    value
        None where the run did not measure what it needs.
    relation, limit
        How the value must stand to the limit; empty and None where it is told and not judged.
    unit
        Of value and limit; `×` for a ratio.
    basis
        Which figures of the run it comes from.
    """

    name: str
    value: float | None
    relation: str = ""
    limit: float | None = None
    unit: str = ""
    basis: str = ""

    def __post_init__(self) -> None:
        if (self.limit is None) != (self.relation not in _HOLDS):
            raise ValueError(
                f"claim {self.name!r} has relation {self.relation!r} and limit {self.limit}; "
                f"accepted: one of {', '.join(_HOLDS)} with a limit, or neither"
            )

    @property
    def holds(self) -> bool | None:
        """Whether it does; None where there is no value or no limit."""
        if self.value is None or self.limit is None:
            return None
        return _HOLDS[self.relation](self.value, self.limit)

    def as_json(self) -> dict[str, Any]:
        """Return all of it."""
        return asdict(self) | {"holds": self.holds}


def claims(results: Results) -> list[Claim]:
    """Work out every claim, as far as `results` has the figures for it."""
    run = _Figures(results)
    default, node = run.default, run.vga
    return [
        Claim(
            name="fps out, VGA at 30 Hz",
            value=_get(node, "fps_out"),
            relation="≥",
            limit=10.0,
            unit="fps",
            basis="node level: MagImg, mask and confidence at VGA",
        ),
        Claim(
            name="age at publish, p95, to the engine's p95",
            value=_ratio(_get(node, "age_at_publish_ms", "p95"), _get(default, "ms", "p95")),
            relation="≤",
            limit=1.5,
            unit="×",
            basis="VGA at 30 Hz; the engine alone, frames back to back",
        ),
        Claim(
            name=f"faster than {REFERENCE_STEPS} steps, eager, Ψ then Φ",
            value=_ratio(_get(run.reference, "ms", "p50"), _get(default, "ms", "p50")),
            relation="≥",
            limit=30.0,
            unit="×",
            basis="p50, same model, resolution and frames",
        ),
        Claim(
            name="time to SegFormer-B0's",
            value=_ratio(_get(default, "ms", "p50"), _get(run.peer, "ms", "p50")),
            relation="≤",
            limit=1.0,
            unit="×",
            basis="p50, same backend and input; the whole frame here, the network alone there",
        ),
        Claim(
            name="Ψ and Φ side by side to in turn",
            value=_ratio(_get(run.side("on"), "ms", "p50"), _get(run.side("off"), "ms", "p50")),
            unit="×",
            basis="p50; below 1 side by side is faster",
        ),
        Claim(
            name="ROS's share of a frame",
            value=_percent(_get(node, "ros_share")),
            relation="≤",
            limit=10.0,
            unit="%",
            basis="decode, encode and publish, VGA at 30 Hz",
        ),
        Claim(
            name="warm start to first fused frame",
            value=_get(run.start, "warm", "total"),
            relation="≤",
            limit=5.0,
            unit="s",
            basis="from starting the process, artifact cache filled",
        ),
        Claim(
            name="steady memory of the node",
            value=_get(node, "memory_mb", "steady"),
            relation="≤",
            limit=800.0,
            unit="MB",
            basis="resident, VGA at 30 Hz",
        ),
        Claim(
            name="memory's slope over the soak",
            value=_get(results, "soak", "drift", "memory_slope_mb_per_hour"),
            unit="MiB/h",
            basis="least squares after the warm-up",
        ),
    ]


class _Figures:
    """The rows of a run that the claims compare; an empty mapping where there is none."""

    def __init__(self, results: Results) -> None:
        engine = results.get("engine") or {}
        self._rows: list[Results] = list(engine.get("engine", ()))
        survey: Results = engine.get("survey", {})
        self._own, self._steps = survey.get("resolution"), survey.get("steps")
        self.default = self._find(asked="auto")
        backend = str(self.default.get("backend", "")).partition(" ")[0]
        self._backend = backend
        self.reference = self._find(asked="eager", steps=REFERENCE_STEPS, parallel="off")
        self.peer = _first(engine.get("peers", ()), {"asked": backend})
        self.start = _first(engine.get("start", ()), {"asked": "auto"})
        runs = (results.get("node") or {}).get(f"{VGA[0]}x{VGA[1]}", {})
        self.vga: Results = (runs.get("30.0fps") or {}).get("custom", {})

    def side(self, parallel: str) -> Results:
        """Return the row of what runs by default, with Ψ and Φ side by side or in turn."""
        return self._find(asked=self._backend, steps=self._steps, parallel=parallel)

    def _find(self, **wanted: object) -> Results:
        return _first(self._rows, wanted | {"resolution": self._own})


def _first(rows: Iterable[Results], wanted: Results) -> Results:
    for row in rows:
        if all(row.get(name) == value for name, value in wanted.items()):
            return row
    return {}


def _get(row: Results, *path: str) -> float | None:
    value: Any = row
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return None if value is None else float(value)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _percent(share: float | None) -> float | None:
    return None if share is None else share * 100.0
