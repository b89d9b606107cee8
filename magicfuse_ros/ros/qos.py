"""Quality of service: what the node offers, and how it matches what the camera offers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from magicfuse_ros.ros import dds

OUTPUT_QOS = QoSProfile(depth=1)
"""Reliable, so that every subscriber can connect; depth 1, so that nothing queues."""

LATCHED_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""For messages that are published once and have to reach subscribers that come later."""

INPUT_DEPTH = 5
"""Frames the middleware may hold while the executor is busy; the node itself keeps one."""

FAST_DDS_SEGMENT_BYTES = 512 * 1024
"""Fast DDS's default shared-memory segment; best-effort messages above it are mostly lost."""


def input_qos(reliability: ReliabilityPolicy) -> QoSProfile:
    """Return the profile of the image subscription."""
    return QoSProfile(depth=INPUT_DEPTH, reliability=reliability)


def choose_reliability(setting: str, publishers: Iterable[ReliabilityPolicy]) -> ReliabilityPolicy:
    """Choose the reliability of the input's subscription.

    A setting (the parameter `input_reliability`) of ``reliable`` or ``best_effort`` is taken as it
    is. ``auto`` follows what the topic's present publishers offer: if one is best effort, best
    effort, which receives from every publisher; with reliable ones only, or none, reliable, so that
    no message of a reliable publisher is lost.
    """
    if setting == "reliable":
        return ReliabilityPolicy.RELIABLE
    if setting == "best_effort" or ReliabilityPolicy.BEST_EFFORT in publishers:
        return ReliabilityPolicy.BEST_EFFORT
    return ReliabilityPolicy.RELIABLE


def large_message_warning(
    size_bytes: int,
    reliability: ReliabilityPolicy,
    rmw: str,
    environment: Mapping[str, str],
    what: str = "images",
) -> str:
    """Say that messages of this size get lost without a Fast DDS profile; empty if all is well.

    `rmw` identifies the middleware, such as `rmw_fastrtps_cpp`; `what` names the messages.
    """
    safe = (
        size_bytes <= FAST_DDS_SEGMENT_BYTES
        or reliability != ReliabilityPolicy.BEST_EFFORT
        or "fastrtps" not in rmw
        or dds.has_profile(environment)
    )
    if safe:
        return ""
    return (
        f"{what} of {size_bytes // 1024} KiB arrive best effort, and Fast DDS loses most of what "
        f"exceeds its {FAST_DDS_SEGMENT_BYTES // 1024} KiB of shared memory: set "
        f"{dds.PROFILE_VARIABLE} to this package's config/fastdds.xml, here and for "
        "the sensor's driver"
    )
