"""The benchmark's results as one page of Markdown, for the terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Iterator

from magicfuse_ros.evaluation.benchmark.claims import Results, claims
from magicfuse_ros.evaluation.tables import Column, Row, Table

NAN = float("nan")
_ENGINE_NOTE = (
    "One frame through the engine after the other, from camera image to MagImg, mask and "
    "confidence at the camera's size: resizing, networks, colour and masks. The first row is what "
    "runs by default. SegFormer-B0 is the peer: random weights, batch 1, the network alone from "
    "image tensor to logits at a quarter of the size. Each row is a process of its own; memory is "
    "its resident memory in the end and at its peak. Start: from starting the process to the first "
    "fused frame; the first row of a backend at another resolution than the model's compiles its "
    "networks."
)
_NODE_NOTE = (
    "Two processes: the node, and this command, which plays a camera and hears MagImg, mask and "
    "confidence. Age at publish is the node's own, from the camera's stamp, over the last 30 s; "
    "frames that the node had no time for are dropped, never queued. CPU: of one core. ROS: "
    "reading the message, encoding and publishing, as a share of the frame's time in the node's "
    "worker."
)


def page(results: Results, picture: str | None = None) -> str:
    """Write the page; `picture` is the path of its plots as seen from the page."""
    lines = [
        "# Benchmarks",
        "",
        "<!-- Written by `magicfuse benchmark --markdown`; change the tool, not this page. -->",
        "",
        *(f"{line}  " for line in _what_was_measured(results)),
        "",
    ]
    if picture is not None:
        lines += [f"![time and stages of a frame]({picture})", ""]
    lines.append(_claim_table(results))
    if results.get("engine"):
        lines.append(_engine_table(results["engine"]))
    if results.get("node") or results.get("soak"):
        lines.append(_node_table(results))
    if results["errors"]:
        lines += ["### What could not be measured", "", *map("- {}".format, results["errors"]), ""]
    return "\n".join(lines)


def _what_was_measured(results: Results) -> Iterator[str]:
    machine = results["machine"]
    if results["quick"]:
        kept = ", except those of the soak" if results.get("soak") else ""
        yield f"A QUICK RUN: it shows that the benchmark works; its figures mean nothing{kept}."
    yield (
        f"{machine['time']}: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gb']:.1f} GiB; load average {machine['load']:.1f} before."
    )
    yield ", ".join(f"{name} {version}" for name, version in machine["versions"].items()) + "."
    if results.get("engine"):
        survey = results["engine"]["survey"]
        yield (
            f"Model {survey['model']}{'' if survey['trained'] else ' (UNTRAINED)'}, "
            f"{survey['steps']} steps of its own at {_size(survey['resolution'])}, on "
            f"{survey['device']}."
        )


def _claim_table(results: Results) -> str:
    verdicts = {True: "yes", False: "NO", None: "—"}
    rows: list[Row] = []
    for claim in claims(results):
        measured = "not measured" if claim.value is None else f"{claim.value:.2f} {claim.unit}"
        wanted = "—"
        for sign, limit in (("≥", claim.least), ("≤", claim.most)):
            if limit is not None:
                wanted = f"{sign} {limit:g} {claim.unit}"
        rows.append((claim.name, measured, wanted, verdicts[claim.holds]))
    return _table("What this run shows", "what, measured, wanted, holds", rows)


def _engine_table(engine: Results) -> str:
    sides = {True: "side by side", False: "in turn", None: "—"}
    rows: list[Row] = [
        (
            row["backend"] if "steps" in row else f"SegFormer-B0, {row['backend']}",
            row.get("steps", NAN),
            _size(row["resolution"]),
            row["threads"],
            sides[row.get("side_by_side")],
            row["frames"],
            row["ms"]["p50"],
            row["ms"]["p95"],
            row["fps"],
            *(row["memory_mb"].get(name, NAN) for name in ("steady", "peak", "gpu_peak")),
            row.get("start_s", NAN),
        )
        for row in (*engine["engine"], *engine["peers"])
    ]
    columns = (
        "backend, steps, resolution, threads, Ψ and Φ, frames, p50 (ms):1, p95 (ms):1, fps:1, "
        "memory (MB):0, peak (MB):0, GPU peak (MB):0, start (s)"
    )
    parities = [
        f"{backend} differs by {row['magimg_mean']:.3f} grey levels of 255 in the mean of "
        f"MagImg and agrees on {100.0 * row['mask_agreement']:.2f} % of the mask"
        for backend, row in engine["parity"].items()
        if row
    ]
    told = f" Against eager on the CPU, {'; '.join(parities)}." if parities else ""
    return _table("Engine", columns, rows, _ENGINE_NOTE + told)


def _node_table(results: Results) -> str:
    soak = results.get("soak")
    rows: list[Row] = [
        (
            f"{_size(row['camera'])} at {row['rate_hz']:g} Hz" + (", soak" if row is soak else ""),
            row["backend"],
            row["sent"],
            row["out"],
            sum(row["dropped"].values()),
            row["lost"],
            "yes" if row["accounted"] else "NO",
            row["fps_out"],
            *(row["age_ms"].get(name, NAN) for name in ("p50", "p95", "max")),
            row["cpu_percent"],
            row["memory_mb"]["steady"],
            NAN if row["ros_percent"] is None else row["ros_percent"],
            row["active_s"],
        )
        for row in (*(results.get("node") or ()), *([soak] if soak else ()))
    ]
    columns = (
        "camera, backend, sent, out, dropped, lost, adds up, fps out:1, age p50 (ms):0, p95:0, "
        "max:0, CPU (%):0, memory (MB):0, ROS (%):1, to active (s):1"
    )
    told = f" {_soak_in_words(soak)}" if soak else ""
    return _table("Node", columns, rows, _NODE_NOTE + told)


def _soak_in_words(soak: Results) -> str:
    drift = soak["drift"]

    def course(name: str, decimals: int = 0) -> str:
        first, last, most = (f"{drift[name][at]:.{decimals}f}" for at in ("first", "last", "max"))
        return f"{first} → {last}, at most {most}"

    ages = ", ".join(f"{name} {value:.0f}" for name, value in soak["arrival_age_ms"].items())
    return (
        f"Soak of {drift['minutes']:.1f} minutes, from {drift['warm_up_s']:.0f} s on: memory "
        f"{course('memory_mb', 1)} MiB ({drift['memory_slope_mb_per_hour']:+.2f} MiB/h); file "
        f"descriptors {course('descriptors')}; threads {course('threads')}; fps "
        f"{drift['fps']['first']:.2f} in the first tenth, {drift['fps']['last']:.2f} in the last; "
        f"age on arrival here {ages} ms; {soak['received']} of {soak['out']} published frames "
        "arrived."
    )


def _table(title: str, columns: str, rows: list[Row], note: str = "") -> str:
    """Print a table of columns `name` or `name:decimals`, apart by commas."""
    made = []
    for column in columns.split(", "):
        name, _, decimals = column.partition(":")
        made.append(Column(name, int(decimals)) if decimals else Column(name))
    return Table(title, tuple(made), tuple(rows), note).markdown()


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
