"""The DDS settings that the commands and the processes they start share."""

from __future__ import annotations

from collections.abc import MutableMapping

from magicfuse_ros.resources import share_dir

PROFILE_VARIABLE = "FASTDDS_DEFAULT_PROFILES_FILE"


def use_shipped_profile(environment: MutableMapping[str, str]) -> None:
    """Point Fast DDS at ``config/fastdds.xml`` unless the user chose a profile.

    Its default shared memory holds 512 KiB: images above that are mostly lost when sent best
    effort. Must be called before a process makes its first node.
    """
    if PROFILE_VARIABLE not in environment and "FASTRTPS_DEFAULT_PROFILES_FILE" not in environment:
        environment[PROFILE_VARIABLE] = str(share_dir() / "config" / "fastdds.xml")


def isolate(environment: MutableMapping[str, str], domain_id: int) -> None:
    """Keep the traffic on this machine and in a ROS domain of its own.

    Parameters
    ----------
    environment
        Changed in place.
    domain_id
        0 to 101, the numbers that are safe on every platform.
    """
    if not 0 <= domain_id <= 101:
        raise ValueError(f"ROS domain {domain_id}: accepted are 0 to 101")
    environment["ROS_DOMAIN_ID"] = str(domain_id)
    environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    environment.pop("ROS_STATIC_PEERS", None)
