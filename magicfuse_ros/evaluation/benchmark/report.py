"""The benchmark's results as a page of Markdown."""

from __future__ import annotations

from magicfuse_ros.evaluation.benchmark.claims import Results
from magicfuse_ros.evaluation.benchmark.tables import row_name, runs, tables


def markdown(results: Results, picture: str | None) -> str:
    """Return the page; `picture` is the path of its plots as seen from the page."""
    lines = [
        "# Benchmarks",
        "",
        "<!-- Written by `magicfuse benchmark --markdown`; change the tool, not this page. -->",
        "",
        *(f"{line}  " for line in machine_lines(results)),
        "",
    ]
    if picture is not None:
        lines += [f"![time and work of a frame]({picture})", ""]
    lines += [table.markdown() for table in tables(results)]
    problems = [f"- {problem}" for problem in errors(results)]
    if problems:
        lines += ["### What could not be measured", "", *problems, ""]
    return "\n".join(lines)


def machine_lines(results: Results) -> list[str]:
    """Say in words what was measured, on what, and how busy that was."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    survey = (results.get("engine") or {}).get("survey")
    busy = (
        f"load {machine['load']:.1f} at the start, {machine['load_at_end']:.1f} at the end (the "
        "benchmark's own included)"
    )
    what = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']:g} GiB"
    lines = [f"{machine['time']}: {what}, {machine['system']}; {busy}.", f"{versions}."]
    if survey:
        where = survey["device_name"] or survey["device"]
        lines.append(
            f"Model {survey['model']}{'' if survey['trained'] else ' (UNTRAINED)'}, "
            f"{survey['steps']} steps of its own at {'x'.join(map(str, survey['resolution']))}; "
            f"{where}, {survey['threads']} threads; matrix product: "
            f"{survey['matmul_gflops']:.0f} GFLOP/s fp32."
        )
    if results["grid"] == "quick":
        kept = ", except those of the soak" if results["soak"] else ""
        lines.insert(
            0, f"A QUICK RUN: it shows that the benchmark works; its figures mean nothing{kept}."
        )
    return lines


def errors(results: Results) -> list[str]:
    """Name what could not be measured, and why."""
    found = []
    for kind, rows in (results.get("engine") or {}).items():
        if isinstance(rows, list):
            found += [f"{kind}, {row_name(row)}: {row['error']}" for row in rows if "error" in row]
            if kind == "parity":
                found += [
                    f"parity, {row['asked']}: too far from eager, not timed"
                    for row in rows
                    if "error" not in row and not row["passed"]
                ]
    for camera, rate, run in runs(results):
        if "error" in run:
            found.append(f"node, {camera} at {rate}: {run['error']}")
    if "error" in (results.get("soak") or {}):
        found.append(f"soak: {results['soak']['error']}")
    return found
