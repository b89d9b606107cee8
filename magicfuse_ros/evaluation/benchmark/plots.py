"""The benchmark's results as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from magicfuse_ros.evaluation.benchmark.claims import Results
from magicfuse_ros.evaluation.benchmark.tables import side


def plot(results: Results, path: Path) -> bool:
    """Draw time by steps, a frame's stages and, after a soak, memory over time, as a PNG.

    Returns
    -------
    bool
        False where there is nothing to draw; then nothing is written.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    engine = results.get("engine") or {}
    drift = (results.get("soak") or {}).get("drift")
    drawings: list[Callable[[Any], None]] = []
    if engine.get("engine"):
        drawings += [
            lambda axes: _plot_steps(axes, engine),
            lambda axes: _plot_stages(axes, engine),
        ]
    if drift:
        drawings.append(lambda axes: _plot_soak(axes, drift))
    if not drawings:
        return False
    figure, axes = plt.subplots(1, len(drawings), figsize=(5.0 * len(drawings), 3.4), squeeze=False)
    for draw, each in zip(drawings, axes[0], strict=True):
        draw(each)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)
    return True


def _plot_steps(axes: Any, engine: Results) -> None:
    own = engine["survey"]["resolution"]
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in engine["engine"]:
        if "ms" in row and row["resolution"] == own and row["asked"] != "auto":
            lines.setdefault(f"{row['asked']}, {side(row)}", []).append(
                (row["steps"], row["ms"]["p50"])
            )
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=name)
    for row in engine.get("peers", ()):
        if "ms" in row:
            axes.axhline(row["ms"]["p50"], linestyle=":", label=f"SegFormer-B0, {row['asked']}")
    axes.set(xlabel="steps", ylabel="ms a frame (p50)", xscale="log", yscale="log")
    steps = sorted({step for points in lines.values() for step, _ in points})
    axes.set_xticks(steps, labels=map(str, steps), minor=False)
    axes.set_xticks([], minor=True)
    axes.set_title(f"Model resolution {own[0]}x{own[1]}", fontsize=10)
    axes.legend(fontsize=7)


def _plot_stages(axes: Any, engine: Results) -> None:
    own, steps = engine["survey"]["resolution"], engine["survey"]["steps"]
    rows = [
        row
        for row in engine["engine"]
        if "ms" in row and row["resolution"] == own and row["steps"] == steps
    ]
    names = [f"{row['asked']}, {side(row)}" for row in rows]
    left = [0.0] * len(rows)
    for stage in rows[0]["stage_ms"] if rows else ():
        values = [row["stage_ms"][stage] for row in rows]
        axes.barh(names, values, left=left, label=stage)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set(xlabel="ms a frame (p50 of each stage)")
    axes.invert_yaxis()
    axes.set_title(f"Where a frame's time goes, {steps} steps", fontsize=10)
    axes.legend(fontsize=7)


def _plot_soak(axes: Any, drift: Results) -> None:
    axes.plot(drift["series"]["minute"], drift["series"]["memory_mb"])
    axes.set(xlabel="minutes", ylabel="node's memory (MB)")
    axes.set_ylim(bottom=0.0)
    axes.set_title(f"{drift['memory_slope_mb_per_hour']:+.1f} MiB/h", fontsize=10)
