"""The benchmark's results as a picture: a frame's time by steps, and which stages take it."""

from __future__ import annotations

from pathlib import Path

from magicfuse_ros.evaluation.benchmark.claims import Results


def plot(engine: Results, path: Path) -> None:
    """Draw the rows at the model's own resolution, as a PNG.

    Raises ImportError if matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    survey = engine["survey"]
    figure, (time, stages) = plt.subplots(1, 2, figsize=(10.0, 3.4))
    lines: dict[str, list[Results]] = {}
    for row in engine["engine"]:
        if row["resolution"] == survey["resolution"]:
            side = "side by side" if row["side_by_side"] else "in turn"
            lines.setdefault(f"{row['backend']}, {side}", []).append(row)
    for name, rows in lines.items():
        points = sorted((row["steps"], row["ms"]["p50"]) for row in rows)
        time.plot(*zip(*points, strict=True), marker="o", label=name)
        for row in rows:
            left = 0.0
            for index, (stage, ms) in enumerate(row["stage_ms"].items()):
                if row["steps"] == survey["steps"]:
                    stages.barh(name, ms, left=left, color=f"C{index}", label=stage)
                    left += ms
    for row in engine["peers"]:
        time.axhline(row["ms"]["p50"], linestyle=":", label=f"SegFormer-B0, {row['backend']}")
    time.set(xlabel="steps", ylabel="ms a frame (p50)", xscale="log", yscale="log")
    steps = sorted({row["steps"] for rows in lines.values() for row in rows})
    time.set_xticks(steps, labels=map(str, steps))
    time.minorticks_off()
    stages.invert_yaxis()
    stages.set(xlabel=f"ms a frame at {survey['steps']} steps (p50 of each stage)")
    for axes in (time, stages):
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        axes.legend(once.values(), once.keys(), fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)
