"""The benchmark's results as one page of Markdown, for the terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Iterator

from magicfuse_ros.evaluation.benchmark.claims import Results, claims
from magicfuse_ros.evaluation.tables import Column, Row, Table

NAN = float("nan")
_ENGINE_NOTE = (
    "One frame through the engine after the other, from camera image to MagImg, mask and "
    "confidence at the camera's size: resizing, networks, colour and masks. SegFormer-B0 is the "
    "peer: random weights, batch 1, the network alone from image tensor to logits at a quarter of "
    "the size. Each row is a process of its own; memory is its resident memory in the end and at "
    "its peak. GFLOP/s: the networks' multiplications and additions over the time of the stages "
    "that run them, and their share of what an fp32 matrix product reaches here. Where the CPU "
    "can, OpenVINO computes in bfloat16 and may pass that. Side by side, D runs while the masks "
    "are made, which is charged to postprocess: there GFLOP/s is too high by that time. Start: "
    "from starting the process to the first fused frame; the first row of a backend at another "
    "resolution than the model's compiles its networks."
)
_NODE_NOTE = (
    "Three processes: a camera that plays frames, the node, and this command, which hears MagImg, "
    "mask and confidence. Age at publish is the node's own, from the camera's stamp; frames that "
    "the node had no time for are dropped, never queued. CPU: of one core. ROS: decoding the "
    "message, encoding and publishing, as a share of the frame's time in the node's worker."
)


def page(results: Results, picture: str | None = None) -> str:
    """Write the page; `picture` is the path of its plots as seen from the page."""
    engine = results.get("engine") or {}
    lines = [
        "# Benchmarks", "",
        "<!-- Written by `magicfuse benchmark --markdown`; change the tool, not this page. -->", "",
        *(f"{line}  " for line in _what_was_measured(results)), "",
    ]  # fmt: skip
    if picture is not None:
        lines += [f"![time and work of a frame]({picture})", ""]
    tables = [_claim_table(results)]
    if engine:
        tables.append(_engine_table(engine))
    if results.get("node") or results.get("soak"):
        tables.append(_node_table(results))
    lines += [table.markdown() for table in tables]
    problems = errors(results)
    if problems:
        told = (f"- {problem}" for problem in problems)
        lines += ["### What could not be measured", "", *told, ""]
    return "\n".join(lines)


def errors(results: Results) -> list[str]:
    """Name what could not be measured, and why."""
    engine = results.get("engine") or {}
    found = [
        f"parity, {row['asked']}: {row.get('error', 'too far from eager, not timed')}"
        for row in engine.get("parity", ())
        if not row["passed"]
    ]
    for kind, rows in (
        ("engine", engine.get("engine", ())),
        ("SegFormer-B0", engine.get("peers", ())),
        ("node", results.get("node") or ()),
        ("soak", [results["soak"]] if results.get("soak") else ()),
    ):
        for row in rows:
            if "error" in row:
                what = row["asked"] if "asked" in row else _camera(row)
                what += f", {row['steps']} steps at {_size(row)}" if "steps" in row else ""
                found.append(f"{kind}, {what}: {row['error']}")
    return found


def _what_was_measured(results: Results) -> Iterator[str]:
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    if results["quick"]:
        kept = ", except those of the soak" if results.get("soak") else ""
        yield f"A QUICK RUN: it shows that the benchmark works; its figures mean nothing{kept}."
    yield (
        f"{machine['time']}: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gb']:g} GiB, {machine['system']}; load {machine['load']:.1f} at the "
        f"start, {machine['load_at_end']:.1f} at the end (the benchmark's own included)."
    )
    yield f"{versions}."
    survey = (results.get("engine") or {}).get("survey")
    if survey:
        yield (
            f"Model {survey['model']}{'' if survey['trained'] else ' (UNTRAINED)'}, "
            f"{survey['steps']} steps of its own at {'x'.join(map(str, survey['resolution']))}; "
            f"{survey['device_name'] or survey['device']}, {survey['threads']} threads; matrix "
            f"product: {survey['matmul_gflops']:.0f} GFLOP/s fp32."
        )


def _claim_table(results: Results) -> Table:
    verdicts = {True: "yes", False: "NO", None: "—"}
    rows: list[Row] = []
    for claim in claims(results):
        limit = "—" if claim.limit is None else f"{claim.relation} {claim.limit:g} {claim.unit}"
        measured = "not measured" if claim.value is None else f"{claim.value:.2f} {claim.unit}"
        rows.append((claim.name, measured, limit, verdicts[claim.holds], claim.basis))
    return _table("What this run shows", "what, measured, wanted, holds, from", rows)


def _engine_table(engine: Results) -> Table:
    rows: list[Row] = [
        (
            _name(row), str(row["steps"]), _size(row), row["threads"],
            "side by side" if row["side_by_side"] else "in turn", *_times(row),
        )
        for row in engine["engine"]
        if "ms" in row
    ]  # fmt: skip
    rows += [
        (f"SegFormer-B0, {row['backend']}", "—", _size(row), row["threads"], "—",
         *_times(row))
        for row in engine["peers"]
        if "ms" in row
    ]  # fmt: skip
    columns = (
        "backend, steps, resolution, threads, Ψ and Φ, frames, p50 (ms):1, p95 (ms):1, fps:1, "
        "memory (MB):0, peak (MB):0, GFLOP a frame, GFLOP/s:1, of peak (%):0, load:1, start (s)"
    )
    parities = [
        f"{row['asked']} differs by {row['magimg_mean']:.3f} grey levels of 255 in the mean of "
        f"MagImg and agrees on {100.0 * row['mask_agreement']:.2f} % of the mask"
        for row in engine["parity"]
        if "magimg_mean" in row
    ]
    told = f" Against eager on the CPU, {'; '.join(parities)}." if parities else ""
    return _table("Engine", columns, rows, _ENGINE_NOTE + told)


def _times(row: Results) -> Row:
    return (
        row["frames"], row["ms"]["p50"], row["ms"]["p95"], row["fps"], row["memory_mb"]["steady"],
        row["memory_mb"]["peak"], row["gflop"], row["gflops"], 100.0 * row["peak_share"],
        row["load"], row.get("start_s", {}).get("total", NAN),
    )  # fmt: skip


def _node_table(results: Results) -> Table:
    soak, rows = results.get("soak") or {}, list[Row]()
    for row in (*(results.get("node") or ()), *([soak] if soak else ())):
        if "error" not in row:
            share = row["ros_share"]
            name = _camera(row) + (", soak" if row is soak else "")
            rows.append((
                name, row["backend"], row["sent"], row["out"],
                sum(row["dropped"].values()), row["lost"], "yes" if row["accounted"] else "NO",
                row["fps_out"], *(row["age_ms"].get(name, NAN) for name in ("p50", "p95", "max")),
                row["cpu_percent"], row["memory_mb"]["steady"],
                NAN if share is None else 100.0 * share, row["active_s"],
            ))  # fmt: skip
    columns = (
        "camera, backend, sent, out, dropped, lost, adds up, fps out:1, age p50 (ms):0, p95:0, "
        "max:0, CPU (%):0, memory (MB):0, ROS (%):1, to active (s):1"
    )
    told = f" {_soak_in_words(soak)}" if "drift" in soak else ""
    return _table("Node", columns, rows, _NODE_NOTE + told)


def _soak_in_words(soak: Results) -> str:
    drift = soak["drift"]

    def course(name: str, decimals: int = 0) -> str:
        first, last, most = (f"{drift[name][at]:.{decimals}f}" for at in ("first", "last", "max"))
        return f"{first} → {last}, at most {most}"

    ages = ", ".join(f"{name} {value:.0f}" for name, value in soak["arrival_age_ms"].items())
    fps = drift["fps"]
    return (
        f"Soak of {drift['minutes']:.1f} minutes, from {drift['warm_up_s']:.0f} s on: memory "
        f"{course('memory_mb', 1)} MiB ({drift['memory_slope_mb_per_hour']:+.2f} MiB/h); file "
        f"descriptors {course('descriptors')}; threads {course('threads')}; fps {fps['first']:.2f} "
        f"in the first tenth, {fps['last']:.2f} in the last; age on arrival here {ages} ms; "
        f"{soak['received']} of {soak['out']} published frames arrived."
    )


def _table(title: str, columns: str, rows: list[Row], note: str = "") -> Table:
    """Make a table of columns `name` or `name:decimals`, apart by commas."""
    made = []
    for column in columns.split(", "):
        name, _, decimals = column.rpartition(":")
        made.append(Column(name, int(decimals)) if decimals.isdigit() and name else Column(column))
    return Table(title, tuple(made), tuple(rows), note)


def _name(row: Results) -> str:
    """Say what ran, and whether that is the default."""
    name = str(row.get("backend", row["asked"]))
    return f"default ({name})" if row["asked"] == "auto" else name


def _size(row: Results) -> str:
    return _pair(row["resolution"])


def _camera(row: Results) -> str:
    return f"{_pair(row['camera'])} at {row['rate_hz']:g} Hz"


def _pair(size: list[int]) -> str:
    return f"{size[0]}x{size[1]}"
