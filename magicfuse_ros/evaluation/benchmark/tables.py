"""The benchmark's results as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from magicfuse_ros.evaluation.benchmark.claims import Results, claims
from magicfuse_ros.evaluation.tables import Cell, Column, Row, Table

NAN = float("nan")
_ENGINE_NOTE = (
    "One frame through the engine after the other, from camera image to MagImg, mask and "
    "confidence at the camera's size: resizing, networks, colour and masks. Model resolution is "
    "what frames are fitted into with their aspect kept; network input is what that comes to, "
    "padded. Each row is a process of its own; memory is its resident memory in the end and at its "
    "peak. GFLOP/s: the networks' multiplications and additions over the time of the stages that "
    "run them, and their share of what an fp32 matrix product reaches here. Where the CPU can, "
    "OpenVINO computes in bfloat16, in the peer too, and may pass that. Side by side, D runs while "
    "the masks are made, which is charged to postprocess: there GFLOP/s is too high by that time."
)
_STAGES_NOTE = (
    "Median milliseconds of each stage. Denoise is Ψ and Φ; fuse is F & S and the steps. Side by "
    "side, decode is what is left of D when the masks are made."
)
_START_NOTE = (
    "From starting the process to the first fused frame; cold: no compiled artifacts, warm: with "
    "those of the run before. Of the total: Python and PyTorch, the weights, compiling or loading "
    "the networks and running them once, one frame."
)
_PEERS_NOTE = (
    "SegFormer-B0 with random weights, batch 1, from image tensor to logits at a quarter of the "
    "size: neither resizing nor masks are counted for it."
)
_PARITY_NOTE = (
    "Against eager on the CPU, on frames of the sample video: differences in grey levels of 255, "
    "and the share of pixels with the same class."
)
_NODE_NOTE = (
    "Three processes: a camera that plays frames, the node, and this command, which hears MagImg, "
    "mask and confidence. Age at publish is the node's own, from the camera's stamp; frames that "
    "the node had no time for are dropped, never queued. CPU: of one core. ROS: decoding the "
    "message, encoding and publishing, as a share of the frame's time in the node's worker."
)
_R2B_NOTE = (
    "Under the names and by the rules of NVIDIA's ros2_benchmark; milliseconds, to arrival here."
)


def tables(results: Results) -> list[Table]:
    """Make every table that `results` has figures for."""
    makers: list[tuple[str, Callable[[Results], Table]]] = [
        ("parity", _parity_table),
        ("engine", _engine_table),
        ("engine", _stage_table),
        ("peers", _peer_table),
        ("start", _start_table),
    ]
    engine = results.get("engine") or {}
    made = [_claim_table(results)]
    made += [make(engine) for name, make in makers if engine.get(name)]
    if results.get("node"):
        made += [_node_table(results), _r2b_table(results)]
    if (results.get("soak") or {}).get("drift"):
        made.append(_soak_table(results["soak"]))
    return made


def _claim_table(results: Results) -> Table:
    verdicts = {True: "yes", False: "NO", None: "—"}
    rows: list[Row] = []
    for claim in claims(results):
        limit = f"{claim.relation} {claim.limit:g} {claim.unit}" if claim.limit is not None else "—"
        measured = "not measured" if claim.value is None else f"{claim.value:.2f} {claim.unit}"
        rows.append((claim.name, measured, limit, verdicts[claim.holds], claim.basis))
    columns = tuple(map(Column, ("what", "measured", "wanted", "holds", "from")))
    return Table("What this run shows", columns, tuple(rows), "")


def _parity_table(engine: Results) -> Table:
    columns = (
        Column("backend"), Column("frames"), Column("MagImg, mean", 3), Column("MagImg, max"),
        Column("confidence, max"), Column("same class (%)"), Column("passed"),
    )  # fmt: skip
    names = ("frames", "magimg_mean", "magimg_max", "confidence_max")
    rows: list[Row] = [
        (
            row["asked"], *(row.get(name, NAN) for name in names),
            100.0 * row.get("mask_agreement", NAN), "yes" if row["passed"] else "NO",
        )
        for row in engine["parity"]
    ]  # fmt: skip
    return Table("Parity", columns, tuple(rows), _PARITY_NOTE)


def _engine_table(engine: Results) -> Table:
    columns = (
        Column("backend"), Column("steps"), Column("model resolution"), Column("camera"),
        Column("network input"), Column("Ψ and Φ"), Column("frames"), Column("p50 (ms)", 1),
        Column("p95 (ms)", 1), Column("fps", 1), Column("memory (MB)", 0), Column("peak (MB)", 0),
        Column("GFLOP a frame"), Column("GFLOP/s", 1), Column("of peak (%)", 0), Column("load", 1),
    )  # fmt: skip
    rows: list[Row] = [
        (
            backend_name(row), row["steps"], size_name(row["resolution"]), size_name(row["camera"]),
            size_name(row["input"]), side(row), row["frames"], row["ms"]["p50"], row["ms"]["p95"],
            row["fps"], row["memory_mb"]["steady"], row["memory_mb"]["peak"], row["gflop"],
            row["gflops"], 100.0 * row["peak_share"], row["load"],
        )
        for row in _measured(engine["engine"])
    ]  # fmt: skip
    return Table("Engine", columns, tuple(rows), _ENGINE_NOTE)


def _stage_table(engine: Results) -> Table:
    rows = list(_measured(engine["engine"]))
    stages = list(rows[0]["stage_ms"]) if rows else []
    columns = (
        Column("backend"), Column("steps"), Column("model resolution"), Column("Ψ and Φ"),
        *(Column(stage, 1) for stage in stages),
    )  # fmt: skip
    cells: list[Row] = [
        (
            backend_name(row), row["steps"], size_name(row["resolution"]), side(row),
            *(row["stage_ms"][stage] for stage in stages),
        )
        for row in rows
    ]  # fmt: skip
    return Table("Engine: stages", columns, tuple(cells), _STAGES_NOTE)


def _peer_table(engine: Results) -> Table:
    columns = (
        Column("peer"), Column("network input"), Column("frames"), Column("p50 (ms)", 1),
        Column("p95 (ms)", 1), Column("peak (MB)", 0), Column("GFLOP"), Column("GFLOP/s", 1),
        Column("of peak (%)", 0),
    )  # fmt: skip
    rows: list[Row] = [
        (
            f"SegFormer-B0, {row['backend']}", size_name(row["input"]), row["frames"],
            row["ms"]["p50"], row["ms"]["p95"], row["memory_mb"]["peak"], row["gflop"],
            row["gflops"], 100.0 * row["peak_share"],
        )
        for row in _measured(engine["peers"])
    ]  # fmt: skip
    return Table("Peers", columns, tuple(rows), _PEERS_NOTE)


def _start_table(engine: Results) -> Table:
    parts = ("import", "load", "warm_up", "first_frame")
    columns = (
        Column("backend"), Column("model resolution"), Column("start"), Column("total (s)"),
        *(Column(f"{part.replace('_', '-')} (s)") for part in parts),
    )  # fmt: skip
    rows: list[Row] = [
        (
            backend_name(row), size_name(row["resolution"]), temperature, row[temperature]["total"],
            *(row[temperature][part] for part in parts),
        )
        for row in engine["start"]
        for temperature in ("cold", "warm")
        if temperature in row
    ]  # fmt: skip
    return Table("Start-up", columns, tuple(rows), _START_NOTE)


def _node_table(results: Results) -> Table:
    columns = (
        Column("camera"), Column("backend"), Column("sent"), Column("out"), Column("dropped"),
        Column("lost"), Column("adds up"), Column("fps out", 1), Column("age p50 (ms)", 0),
        Column("p95", 0), Column("max", 0), Column("CPU (%)", 0), Column("memory (MB)", 0),
        Column("ROS (%)", 1), Column("to active (s)", 1),
    )  # fmt: skip
    rows: list[Row] = []
    for camera, rate, run in runs(results):
        if "custom" not in run:
            continue
        own = run["custom"]
        frames, age = own["frames"], own["age_at_publish_ms"]
        share = own["ros_share"]
        rows.append((
            f"{camera} at {rate}", own["backend"], frames["sent"], frames["out"],
            sum(frames["dropped"].values()), frames["lost_on_the_way"],
            "yes" if own["accounted"] else "NO", own["fps_out"],
            *(age.get(name, NAN) for name in ("p50", "p95", "max")), own["node_cpu_percent"],
            own["memory_mb"]["steady"], NAN if share is None else 100.0 * share, own["active_s"],
        ))  # fmt: skip
    return Table("Node", columns, tuple(rows), _NODE_NOTE)


def _r2b_table(results: Results) -> Table:
    names = {
        "MEAN_PLAYBACK_FRAME_RATE": "rate in", "MEAN_FRAME_RATE": "rate out",
        "NUM_MISSED_FRAMES": "missed", "FIRST_SENT_RECEIVED_LATENCY": "first latency",
        "LAST_SENT_RECEIVED_LATENCY": "last latency", "MEAN_LATENCY": "mean latency",
        "MAX_LATENCY": "max latency", "MEAN_JITTER": "mean jitter", "MAX_JITTER": "max jitter",
    }  # fmt: skip
    columns = (Column("camera"), *(Column(name, 1) for name in names.values()))
    rows: list[Row] = [
        (
            f"{camera} at {rate}",
            *(run.get(f"BasicPerformanceMetrics.{name}", NAN) for name in names),
        )
        for camera, rate, run in runs(results)
        if "error" not in run
    ]
    return Table("Node, as ros2_benchmark tells it", columns, tuple(rows), _R2B_NOTE)


def _soak_table(soak: Results) -> Table:
    drift, own = soak["drift"], soak["custom"]
    age = own["age_on_arrival_ms"]
    change = drift["fps"]["drift_percent"]
    frames = own["frames"]
    ends = (frames["out"], sum(frames["dropped"].values()), frames["lost_on_the_way"])

    def both(name: str, decimals: int = 0) -> str:
        return f"{drift[name]['first']:.{decimals}f} → {drift[name]['last']:.{decimals}f}"

    def course(name: str, decimals: int = 0) -> Cell:
        return f"{both(name, decimals)}, at most {drift[name]['max']:.{decimals}f}"

    rows: tuple[Row, ...] = (
        ("memory's slope (MiB/h)", f"{drift['memory_slope_mb_per_hour']:+.2f}"),
        ("memory (MiB)", course("memory_mb", 1)),
        ("file descriptors", course("descriptors")),
        ("threads", course("threads")),
        ("fps", f"{both('fps', 2)} ({NAN if change is None else change:+.1f} %)"),
        ("age on arrival (ms): p50, p95, p99.9, max", ", ".join(f"{v:.0f}" for v in age.values())),
        ("frames sent", str(frames["sent"])),
        ("of those: out, dropped, lost on the way", ", ".join(map(str, ends))),
        ("sent = out + dropped + lost", "yes" if own["accounted"] else "NO"),
        ("frames received here, of those out", str(frames["received"])),
    )
    width, height = own["camera"]
    title = f"Soak: {drift['minutes']:.1f} minutes, {width}x{height} at {own['rate_hz']:g} Hz"
    note = (
        f"First and last after a warm-up of {drift['warm_up_s']:.0f} s; fps: of the first and the "
        "last tenth. Age: here, when the MagImg arrived, of every frame."
    )
    return Table(title, (Column("what"), Column("value")), rows, note)


def _measured(rows: list[Results]) -> Iterator[Results]:
    return (row for row in rows if "ms" in row)


def runs(results: Results) -> Iterator[tuple[str, str, Results]]:
    """Yield the node's runs: camera, rate, and what came of it."""
    for camera, runs in (results.get("node") or {}).items():
        for rate, run in runs.items():
            yield camera, rate, run


def row_name(row: Results) -> str:
    """Name the configuration of a row in words."""
    sides = f", Ψ and Φ {side(row)}" if "parallel" in row else ""
    steps = f", {row['steps']} steps" if "steps" in row else ""
    size = f" at {size_name(row['resolution'])}" if "resolution" in row else ""
    return f"{row['asked']}{steps}{size}{sides}"


def backend_name(row: Results) -> str:
    """Say what ran, and whether it was chosen by default."""
    name = str(row.get("backend", row["asked"]))
    return f"default ({name})" if row["asked"] == "auto" else name


def side(row: Results) -> str:
    """Say how a row ran Ψ and Φ; where the engine chose, what it chose."""
    ran = {True: "side by side", False: "in turn"}
    if row["parallel"] == "auto":
        return f"auto ({ran[row['side_by_side']]})" if "side_by_side" in row else "auto"
    return ran[row["parallel"] == "on"]


def size_name(size: list[int]) -> str:
    """Spell (width, height)."""
    return f"{size[0]}x{size[1]}"
