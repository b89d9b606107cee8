"""Several cameras on one machine: a `fuse_node` each, in a namespace each.

    ros2 launch magicfuse_ros cameras.launch.py cameras:='front rear'
    ros2 launch magicfuse_ros cameras.launch.py cameras:='left right' image:=image_rect threads:=2

The cameras' names are the namespaces; `image` and `camera_info` are relative to them, so that front
reads /front/image_raw. Every other argument of fuse.launch.py may be given too and holds for all.
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    GroupAction,
    IncludeLaunchDescription,
    OpaqueFunction,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource

from magicfuse_ros.resources import share_dir


def generate_launch_description() -> LaunchDescription:
    """Return the description; `ros2 launch` calls this."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "cameras", default_value="left right", description="Their names, with spaces."
            ),
            DeclareLaunchArgument(
                "image", default_value="image_raw", description="Image topic of each camera."
            ),
            OpaqueFunction(function=_start),
        ]
    )


def _start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    names = context.launch_configurations["cameras"].split()
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"cameras:={' '.join(names)!r}: accepted are one or more different names, with spaces "
            "between them"
        )
    one = PythonLaunchDescriptionSource(str(share_dir() / "launch" / "fuse.launch.py"))
    # Scoped: what one camera's launch file sets must not count as given for the next.
    return [
        GroupAction(
            [IncludeLaunchDescription(one, launch_arguments=[("namespace", name)])], scoped=True
        )
        for name in names
    ]
