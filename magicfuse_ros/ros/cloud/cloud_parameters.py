"""Every parameter of `semantic_cloud`, in one table: the one place for their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from magicfuse_ros.ros.cloud.extrinsics import RigidTransform
from magicfuse_ros.ros.cloud.painting import Occlusion
from magicfuse_ros.ros.parameter_table import AUTOSTART, ParameterError, ParameterSpec

CLOUD_PARAMETERS: tuple[ParameterSpec, ...] = (
    ParameterSpec(
        name="slop",
        default=0.05,
        low=0.0,
        high=10.0,
        live=True,
        description="Most that the stamps of cloud and mask may differ, in seconds; 0 takes equal "
        "stamps only.",
    ),
    ParameterSpec(
        name="queue",
        default=20,
        low=1,
        high=1000,
        live=True,
        description="Clouds kept while their mask is being computed: at least fuse_node's age_ms "
        "times the clouds' rate.",
    ),
    ParameterSpec(
        name="extrinsic",
        default="",
        live=True,
        description="Pose of the cloud's frame in the camera's optical frame, 'x y z roll pitch "
        "yaw' in metres and radians; empty takes it from tf, or the cloud as it is where both "
        "frames are one.",
    ),
    ParameterSpec(
        name="rectified",
        default=False,
        live=True,
        description="The camera's pictures are rectified: CameraInfo's P describes them, in place "
        "of K and D.",
    ),
    ParameterSpec(
        name="unseen",
        default="keep",
        choices=("keep", "drop"),
        live=True,
        description="Points that the camera does not see: keep them with class 255, or drop them "
        "(in a cloud of several rows their coordinates become NaN).",
    ),
    ParameterSpec(
        name="occlusion.gap",
        default=0,
        low=0,
        high=200,
        live=True,
        description="Widest gap in pixels between neighbouring points of one surface, which then "
        "hides points behind it; 0 hides none, right for a depth camera's own cloud.",
    ),
    ParameterSpec(
        name="occlusion.tolerance",
        default=0.1,
        low=0.0,
        high=0.9,
        live=True,
        description="How far behind that surface a point must be to be hidden, as a fraction of "
        "its distance.",
    ),
    ParameterSpec(
        name="color",
        default=True,
        description="Paint rgb from the picture on `color`, which is then waited for; otherwise "
        "rgb is black.",
    ),
    ParameterSpec(
        name="input_reliability",
        default="auto",
        choices=("auto", "reliable", "best_effort"),
        live=True,
        description="Reliability of the cloud's subscription; auto matches its publisher.",
    ),
    AUTOSTART,
)


@dataclass(frozen=True, kw_only=True)
class CloudSettings:
    """One consistent set of parameter values.

    None stands for "from tf" (extrinsic) and "hide none" (occlusion).
    """

    slop_ns: int
    queue: int
    extrinsic: RigidTransform | None
    rectified: bool
    keep_unseen: bool
    occlusion: Occlusion | None
    color: bool
    input_reliability: str

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> CloudSettings:
        """Check every value; raise a `ParameterError` that names the first that is not accepted."""
        for spec in CLOUD_PARAMETERS:
            spec.check(values[spec.name])
        checked: dict[str, Any] = dict(values)
        try:
            extrinsic = checked["extrinsic"] and RigidTransform.parse(checked["extrinsic"])
        except ValueError as error:
            raise ParameterError(f"extrinsic is {error}") from error
        gap = checked["occlusion.gap"]
        return cls(
            slop_ns=round(checked["slop"] * 1e9),
            queue=checked["queue"],
            extrinsic=extrinsic or None,
            rectified=checked["rectified"],
            keep_unseen=checked["unseen"] == "keep",
            occlusion=Occlusion(gap, checked["occlusion.tolerance"]) if gap else None,
            color=checked["color"],
            input_reliability=checked["input_reliability"],
        )
