"""What `/diagnostics` says about the node, once a second.

The keys are part of the interface; consumers read them by name:

- `state` (unconfigured, configuring, inactive, active, finalized), `enabled`, `degraded`;
- `model`, `trained`, `labels`, `backend`; `label_info` (published, or why not);
- `input_topic`, `input_reliability`, `input_publishers`;
- `frames_in`, `frames_out`, `frames_pending`, `dropped_total`, `dropped.<reason>` since the start:
  frames_in = frames_out + dropped_total + frames_pending, always;
- `stamps_backwards` (frames whose stamp is older than the one before; they are fused),
  `ages_unknown` (published frames whose age the clocks do not give);
- `fps_in`, `fps_out` over the last 5 s;
- `age_ms.{p50,p95,max}`, age at publish by the node's clock, and `stage_ms.<stage>.{p50,p95,max}`
  over the last 30 s: wait (in the mailbox), read (the message into a picture), the engine's
  own stages, publish, and total (receipt to publish);
- `memory_mb`, the process's resident memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.time import Time

from magicfuse_ros.model.labels import LabelSet, LabelSetError
from magicfuse_ros.resources import model_path
from magicfuse_ros.ros import ledger
from magicfuse_ros.ros.statistics import Summary

NO_INPUT_S = 3.0
STUCK_S = 5.0

_HARMLESS = {ledger.REPLACED, ledger.DISABLED, ledger.INACTIVE}
_ENGINE = {ledger.ENGINE_ERROR, ledger.ENGINE_HUNG, ledger.PUBLISH_ERROR}


@dataclass(frozen=True, kw_only=True)
class Health:
    """What the level of the diagnostics depends on.

    `error` says why the last configuration or activation failed, and `warnings` are standing
    conditions that the user should know of. `silent_s` counts the seconds since the last frame on
    `input_topic` (or the activation), which has so many `publishers`; `busy_s` those that the
    engine has been working on the present frame. `dropped` are the frames of the last seconds, by
    reason.
    """

    state: str
    enabled: bool
    error: str = ""
    warnings: tuple[str, ...] = ()
    input_topic: str = ""
    publishers: int = 0
    silent_s: float = 0.0
    busy_s: float = 0.0
    dropped: Mapping[str, int] = field(default_factory=dict)


def judge(health: Health) -> tuple[bytes, str]:
    """Return the level of the diagnostics and their message.

    The level is ERROR if the node could not be configured, or if the engine fails or hangs; STALE
    if the node is active but no frames come; WARN for bad input or a standing warning; and OK
    otherwise, also while the node waits to be activated.
    """
    errors, warnings = [], list(health.warnings)
    if health.error:
        errors.append(health.error)
    if health.busy_s > STUCK_S:
        errors.append(f"the engine has been busy with one frame for {health.busy_s:.0f} s")
    for reason, count in sorted(health.dropped.items()):
        if reason in _ENGINE:
            errors.append(f"{count} frames lost to {reason}")
        elif reason not in _HARMLESS:
            warnings.append(f"{count} bad frames: {reason}")
    if errors:
        return DiagnosticStatus.ERROR, "; ".join(errors + warnings)
    silent = health.state == "active" and health.enabled and health.silent_s > NO_INPUT_S
    if silent:
        silence = (
            f"no frames on {health.input_topic} for {health.silent_s:.0f} s "
            f"({health.publishers} publishers)"
        )
        return DiagnosticStatus.STALE, "; ".join([silence, *warnings])
    if warnings:
        return DiagnosticStatus.WARN, "; ".join(warnings)
    if health.state == "active" and not health.enabled:
        return DiagnosticStatus.OK, "paused by ~/enable"
    return DiagnosticStatus.OK, health.state


def key_values(
    facts: Mapping[str, object],
    account: ledger.Account,
    rates: tuple[float, float],
    summaries: Mapping[str, Summary],
) -> dict[str, str]:
    """Write the node's facts, counts and statistics as text under the keys above."""
    values = {name: _spell(value) for name, value in facts.items()}
    values["frames_in"] = str(account.frames_in)
    values["frames_out"] = str(account.frames_out)
    values["frames_pending"] = str(account.pending)
    values["dropped_total"] = str(account.dropped_total)
    for reason, count in sorted(account.dropped.items()):
        values[f"dropped.{reason}"] = str(count)
    values["fps_in"], values["fps_out"] = (f"{rate:.2f}" for rate in rates)
    for name, summary in summaries.items():
        prefix = "age_ms" if name == "age" else f"stage_ms.{name}"
        for part in ("p50", "p95", "max"):
            values[f"{prefix}.{part}"] = f"{getattr(summary, part):.2f}"
    memory = resident_memory_mb()
    if memory is not None:
        values["memory_mb"] = f"{memory:.1f}"
    return values


def message(
    name: str, stamp: Time, level: bytes, text: str, values: Mapping[str, str]
) -> DiagnosticArray:
    """Assemble the message; `name` is the node's full name."""
    status = DiagnosticStatus(level=level, name=f"{name.lstrip('/')}: magicfuse", message=text)
    status.hardware_id = values.get("input_topic", "")
    status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
    array = DiagnosticArray(status=[status])
    array.header.stamp = stamp.to_msg()
    return array


def label_set_of(values: Mapping[str, str]) -> LabelSet | None:
    """Return a node's label set by its key-values; None if it cannot be found by its name."""
    from magicfuse_ros.model.checkpoint import CheckpointError, read_config  # imports torch

    name = values.get("labels", "")
    try:
        if name in LabelSet.built_in():
            return LabelSet.load(name)
        folder = model_path(values.get("model", ""))
        return LabelSet.load(folder / read_config(folder).labels)
    except (LabelSetError, CheckpointError):
        return None


def resident_memory_mb() -> float | None:
    """Resident memory of this process in MiB; None where the system does not tell (not Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _spell(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
