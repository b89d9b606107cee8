"""The benchmark's results as one page of Markdown, for the terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from magicfuse_ros.evaluation.benchmark.claims import Results, claims
from magicfuse_ros.evaluation.tables import Cell, Column, Table

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
    parts = [
        "# Benchmarks",
        "<!-- Written by `magicfuse benchmark --markdown`; change the tool, not this page. -->",
        "\n".join(f"{line}  " for line in _what_was_measured(results)),
        f"![time and stages of a frame]({picture})" if picture else "",
        _claim_table(results),
        _engine_table(results["engine"]) if results.get("engine") else "",
        _node_table(results) if results.get("node") or results.get("soak") else "",
    ]
    if results["errors"]:
        parts += [
            "### What could not be measured",
            "\n".join(map("- {}".format, results["errors"])),
        ]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


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
    rows = []
    for claim in claims(results):
        limits = {"≥": claim.least, "≤": claim.most}
        wanted = [f"{sign} {at:g} {claim.unit}" for sign, at in limits.items() if at is not None]
        measured = "not measured" if claim.value is None else f"{claim.value:.2f} {claim.unit}"
        row = {"what": claim.name, "measured": measured, "wanted": ", ".join(wanted) or "—"}
        rows.append(row | {"holds": verdicts[claim.holds]})
    return _table("What this run shows", rows)


def _engine_table(engine: Results) -> str:
    sides = {True: "side by side", False: "in turn", None: "—"}
    rows = [
        {
            "backend": row["backend"] if "steps" in row else f"SegFormer-B0, {row['backend']}",
            "steps": row.get("steps", NAN),
            "resolution": _size(row["resolution"]),
            "threads": row["threads"],
            "Ψ and Φ": sides[row.get("side_by_side")],
            "frames": row["frames"],
            "p50 (ms):1": row["ms"]["p50"],
            "p95 (ms):1": row["ms"]["p95"],
            "fps:1": row["fps"],
            "memory (MB):0": row["memory_mb"]["steady"],
            "peak (MB):0": row["memory_mb"]["peak"],
            "GPU peak (MB):0": row["memory_mb"].get("gpu_peak", NAN),
            "start (s)": row.get("start_s", NAN),
        }
        for row in (*engine["engine"], *engine["peers"])
    ]
    parities = [
        f"{backend} differs by {row['magimg_mean']:.3f} grey levels of 255 in the mean of "
        f"MagImg and agrees on {100.0 * row['mask_agreement']:.2f} % of the mask"
        for backend, row in engine["parity"].items()
        if row
    ]
    told = f" Against eager on the CPU, {'; '.join(parities)}." if parities else ""
    return _table("Engine", rows, _ENGINE_NOTE + told)


def _node_table(results: Results) -> str:
    soak = results.get("soak")
    rows = [
        {
            "camera": f"{_size(row['camera'])} at {row['rate_hz']:g} Hz"
            + (", soak" if row is soak else ""),
            "backend": row["backend"],
            "sent": row["sent"],
            "out": row["out"],
            "dropped": sum(row["dropped"].values()),
            "lost": row["lost"],
            "adds up": "yes" if row["accounted"] else "NO",
            "fps out:1": row["fps_out"],
            "age p50 (ms):0": row["age_ms"].get("p50", NAN),
            "p95:0": row["age_ms"].get("p95", NAN),
            "max:0": row["age_ms"].get("max", NAN),
            "CPU (%):0": row["cpu_percent"],
            "memory (MB):0": row["memory_mb"]["steady"],
            "ROS (%):1": NAN if row["ros_percent"] is None else row["ros_percent"],
            "to active (s):1": row["active_s"],
        }
        for row in (*(results.get("node") or ()), *([soak] if soak else ()))
    ]
    told = f" {_soak_in_words(soak)}" if soak else ""
    return _table("Node", rows, _NODE_NOTE + told)


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


def _table(title: str, rows: Sequence[Mapping[str, Cell]], note: str = "") -> str:
    """Print rows of cells under their headings, `name` or `name:decimals`; nothing for no row."""
    if not rows:
        return ""
    headings = [heading.partition(":") for heading in rows[0]]
    columns = tuple(Column(name, int(decimals or 2)) for name, _, decimals in headings)
    return Table(title, columns, tuple(tuple(row.values()) for row in rows), note).markdown()


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
