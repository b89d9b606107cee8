"""What is worked out of a node's run: ros2_benchmark's metrics, and how a long run drifts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_NS_PER_MS = 1e6
_MOST_POINTS = 120
_WARM_UP_S, _WARM_UP_SHARE = 60.0, 0.2


def performance_metrics(sent_ns: Sequence[int], received_ns: Mapping[int, int]) -> dict[str, float]:
    """Return `BasicPerformanceMetrics` of NVIDIA's ros2_benchmark, by its names and its rules.

    Rates are frames over the time from the first to the last of them (not one frame fewer, as
    `fps_out` is here); jitter is how much two intervals in a row differ; times are milliseconds.

    Parameters
    ----------
    sent_ns
        Stamps of the frames sent, in order: the times of their sending.
    received_ns
        Stamp → time of arrival of what came out. Empty where nothing did: then only what was sent
        is told.
    """
    metrics: dict[str, float] = {
        "NUM_FRAMES_SENT": len(sent_ns),
        "NUM_MISSED_FRAMES": len(sent_ns) - len(received_ns),
    }
    if len(sent_ns) > 1:
        metrics["MEAN_PLAYBACK_FRAME_RATE"] = len(sent_ns) / (sent_ns[-1] - sent_ns[0]) * 1e9
    if not received_ns:
        return _named(metrics)
    arrivals = np.sort(np.array(list(received_ns.values()), np.int64))
    ages_ms = ages(received_ns)
    duration_ns = int(arrivals[-1] - arrivals[0])
    metrics["RECEIVED_DURATION"] = duration_ns / _NS_PER_MS
    if duration_ns:
        metrics["MEAN_FRAME_RATE"] = len(arrivals) / duration_ns * 1e9
    metrics["FIRST_SENT_RECEIVED_LATENCY"] = (int(arrivals[0]) - sent_ns[0]) / _NS_PER_MS
    metrics["LAST_SENT_RECEIVED_LATENCY"] = (int(arrivals[-1]) - sent_ns[-1]) / _NS_PER_MS
    metrics["FIRST_INPUT_LATENCY"] = float(ages_ms[0])
    metrics["LAST_INPUT_LATENCY"] = float(ages_ms[-1])
    metrics["MEAN_LATENCY"] = float(ages_ms.mean())
    metrics["MIN_LATENCY"], metrics["MAX_LATENCY"] = float(ages_ms.min()), float(ages_ms.max())
    if len(arrivals) > 2:
        jitter_ms = np.abs(np.diff(arrivals, n=2)) / _NS_PER_MS
        metrics["MEAN_JITTER"], metrics["STD_DEV_JITTER"] = jitter_ms.mean(), jitter_ms.std()
        metrics["MIN_JITTER"], metrics["MAX_JITTER"] = jitter_ms.min(), jitter_ms.max()
    return _named(metrics)


def cpu_metrics(idle: Sequence[float], utilisation: Sequence[float]) -> dict[str, float]:
    """Return `ResourceMetrics` of ros2_benchmark from percents of all cores in use.

    Parameters
    ----------
    idle, utilisation
        Before the camera played, and second by second while it did; at least one of each.
    """
    values = np.array(utilisation)
    return {
        "ResourceMetrics.BASELINE_OVERALL_CPU_UTILIZATION": float(np.mean(idle)),
        "ResourceMetrics.MEAN_OVERALL_CPU_UTILIZATION": float(values.mean()),
        "ResourceMetrics.MIN_OVERALL_CPU_UTILIZATION": float(values.min()),
        "ResourceMetrics.MAX_OVERALL_CPU_UTILIZATION": float(values.max()),
        "ResourceMetrics.STDDEV_OVERALL_CPU_UTILIZATION": float(values.std()),
    }


def ages(received_ns: Mapping[int, int]) -> NDArray[np.float64]:
    """Return each frame's age on arrival in ms, in the order of the stamps."""
    return np.array([received_ns[stamp] - stamp for stamp in sorted(received_ns)]) / _NS_PER_MS


def percentiles(values_ms: NDArray[np.float64]) -> dict[str, float]:
    """Return median, tail and largest of some times; p99.9 is the largest of fewer than 1000."""
    p50, p95, p999, largest = np.percentile(values_ms, (50.0, 95.0, 99.9, 100.0))
    return {"p50": float(p50), "p95": float(p95), "p99.9": float(p999), "max": float(largest)}


def frame_rate(received_ns: Mapping[int, int]) -> float:
    """Frames a second between the first and the last that arrived; 0 for fewer than two."""
    times = sorted(received_ns.values())
    span_ns = times[-1] - times[0] if times else 0
    return (len(times) - 1) * 1e9 / span_ns if span_ns else 0.0


def slope_per_hour(seconds: ArrayLike, values: ArrayLike) -> float:
    """Fit a straight line by least squares; by how much it rises in an hour."""
    x, y = np.asarray(seconds, float), np.asarray(values, float)
    x = x - x.mean()
    spread = float((x * x).sum())
    return float((x * (y - y.mean())).sum()) / spread * 3600.0 if spread else 0.0


def drift(
    seconds: Sequence[float], usages: Sequence[Mapping[str, float]], received_ns: Mapping[int, int]
) -> dict[str, Any]:
    """Say what changed over a long run, after its warm-up.

    The warm-up is the first minute, or the first fifth of a run shorter than five minutes.

    Parameters
    ----------
    seconds
        When each sample was taken, from the start of the run.
    usages
        The samples: `memory_mb`, `threads` and `descriptors` of the node's process.
    received_ns
        Stamp → time of arrival of every frame that came out.
    """
    warm_up_s = min(_WARM_UP_S, _WARM_UP_SHARE * seconds[-1])
    start = next(index for index, second in enumerate(seconds) if second >= warm_up_s)
    kept, times = usages[start:], seconds[start:]

    def course(name: str) -> dict[str, float]:
        values = [sample[name] for sample in kept]
        return {"first": values[0], "last": values[-1], "max": max(values)}

    memory = [sample["memory_mb"] for sample in kept]
    arrivals = np.sort(np.array(list(received_ns.values()), np.int64))
    since_s = (arrivals - arrivals[0]) / 1e9 if len(arrivals) else np.array([])
    tenth = (seconds[-1] - warm_up_s) / 10

    def rate(begin: float, end: float) -> float:
        return float(((since_s >= begin) & (since_s < end)).sum()) / (end - begin)

    first, last = rate(warm_up_s, warm_up_s + tenth), rate(seconds[-1] - tenth, seconds[-1])
    chosen = np.unique(np.linspace(0, len(seconds) - 1, _MOST_POINTS).astype(int))
    return {
        "minutes": seconds[-1] / 60.0,
        "warm_up_s": warm_up_s,
        "memory_slope_mb_per_hour": slope_per_hour(times, memory),
        **{name: course(name) for name in ("memory_mb", "descriptors", "threads")},
        "fps": {
            "first": first,
            "last": last,
            "drift_percent": (last / first - 1.0) * 100.0 if first else None,
        },
        "series": {
            "minute": [round(seconds[index] / 60.0, 3) for index in chosen],
            "memory_mb": [round(usages[index]["memory_mb"], 2) for index in chosen],
        },
    }


def _named(metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"BasicPerformanceMetrics.{name}": float(value) for name, value in metrics.items()}
