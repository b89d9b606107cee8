"""The demo's closing table: what became of every frame, how fast, and how old at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from magicfuse_ros.commands.node_session import Session


def is_trained(session: Session) -> bool:
    """Whether the node said that its weights are trained."""
    return session.diagnostics.get("trained") == "true"


def table(description: str, session: Session) -> list[str]:
    """Return the lines of the closing table."""
    said = session.diagnostics
    sent = len(session.sent_ns)
    at_publish, on_arrival = ages_ms(session)
    dropped = {
        key.partition(".")[2]: int(value)
        for key, value in said.items()
        if key.startswith("dropped.") and value != "0"
    }
    names = {"replaced": "replaced by a newer frame"}
    reasons = [f"{count} {names.get(reason, reason)}" for reason, count in dropped.items()]
    lost = sent - session.fused - sum(dropped.values())
    if lost > 0:
        reasons.append(f"{lost} lost on the way")
    weights = "trained" if is_trained(session) else "UNTRAINED: the pictures mean nothing"
    missed = session.fused - session.recorded
    recorded = (
        [("frames recorded", f"{session.recorded}  ({missed} lost on the way)")] if missed else []
    )
    rows: list[tuple[str, str]] = [
        ("input", description),
        ("model", f"{model_name(said)}, {weights}"),
        ("frames sent", str(sent)),
        ("frames fused", str(session.fused)),
        *recorded,
        (
            "frames dropped",
            f"{sent - session.fused}" + (f"  ({', '.join(reasons)})" if reasons else ""),
        ),
        ("fps", f"{session.fps:.1f}"),
        ("age at publish, p50 / p95 ms", f"{at_publish}  (the node's /diagnostics)"),
        ("age on arrival, p50 / p95 ms", f"{on_arrival}  (recorder's clock - header stamp)"),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def model_name(said: Mapping[str, str]) -> str:
    """Name the model and what ran it, without the folders of a path."""
    return f"{Path(said.get('model', 'unknown')).name} ({said.get('backend', 'unknown')})"


def ages_ms(session: Session) -> tuple[str, str]:
    """Return p50 / p95 in ms of a frame's age when the node published it, and when it was recorded.

    The first is by the node's clock, from its /diagnostics (last 30 s); the second is over all
    frames.
    """
    said = session.diagnostics
    publish = "unknown"
    if "age_ms.p50" in said:
        publish = f"{float(said['age_ms.p50']):.0f} / {float(said['age_ms.p95']):.0f}"
    arrival = session.arrival_ages_ms(50.0, 95.0)
    return publish, f"{arrival[0]:.0f} / {arrival[1]:.0f}" if arrival else "unknown"
