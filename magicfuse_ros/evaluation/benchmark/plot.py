"""The benchmark's results as a picture: time by steps, a frame's stages, memory over a soak."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from magicfuse_ros.evaluation.benchmark.claims import Results


def plot(results: Results, path: Path) -> bool:
    """Draw what there is of the three plots side by side, as a PNG.

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
    drawings: list[tuple[Callable[[Any, Any], None], Any]] = []
    if any("ms" in row for row in engine.get("engine", ())):
        drawings += [(_plot_steps, engine), (_plot_stages, engine)]
    if drift:
        drawings.append((_plot_soak, drift))
    if not drawings:
        return False
    figure, axes = plt.subplots(1, len(drawings), figsize=(5.0 * len(drawings), 3.4), squeeze=False)
    for (draw, what), each in zip(drawings, axes[0], strict=True):
        draw(each, what)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)
    return True


def _own_rows(engine: Results) -> list[tuple[str, Results]]:
    """Return the rows at the model's own resolution, each with a name for its line."""
    sides = {True: "side by side", False: "in turn"}
    return [
        (f"{row['backend'].partition(' ')[0]}, {sides[row['side_by_side']]}", row)
        for row in engine["engine"]
        if "ms" in row and row["resolution"] == engine["survey"]["resolution"]
    ]


def _plot_steps(axes: Any, engine: Results) -> None:
    lines: dict[str, list[tuple[int, float]]] = {}
    for name, row in _own_rows(engine):
        lines.setdefault(name, []).append((row["steps"], row["ms"]["p50"]))
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=name)
    for row in engine["peers"]:
        if "ms" in row:
            axes.axhline(row["ms"]["p50"], linestyle=":", label=f"SegFormer-B0, {row['asked']}")
    axes.set(xlabel="steps", ylabel="ms a frame (p50)", xscale="log", yscale="log")
    steps = sorted({step for points in lines.values() for step, _ in points})
    axes.set_xticks(steps, labels=map(str, steps), minor=False)
    axes.set_xticks([], minor=True)
    width, height = engine["survey"]["resolution"]
    axes.set_title(f"Model resolution {width}x{height}", fontsize=10)
    axes.legend(fontsize=7)


def _plot_stages(axes: Any, engine: Results) -> None:
    steps = engine["survey"]["steps"]
    rows = {name: row["stage_ms"] for name, row in _own_rows(engine) if row["steps"] == steps}
    left = [0.0] * len(rows)
    for stage in next(iter(rows.values()), ()):
        values = [stage_ms[stage] for stage_ms in rows.values()]
        axes.barh(list(rows), values, left=left, label=stage)
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
