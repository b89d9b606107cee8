"""One camera's `fuse_node`, and RViz beside it if wanted.

    ros2 launch magicfuse_ros fuse.launch.py image:=/camera/image_raw
    ros2 launch magicfuse_ros fuse.launch.py --show-args

Every parameter of the node is an argument, with the node's own default. An argument that is given
wins over `params_file`; one that is not given leaves the file's value alone.
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch_ros.actions import Node

from magicfuse_ros.resources import share_dir
from magicfuse_ros.ros.launching import ManagedNodeLaunch, process_prefix, truth
from magicfuse_ros.ros.node.parameters import PARAMETERS


def generate_launch_description() -> LaunchDescription:
    """Return the description; `ros2 launch` calls this."""
    return ManagedNodeLaunch(
        executable="fuse_node",
        parameters=PARAMETERS,
        topics=(
            ("image", "Image topic; with input_transport:=compressed its /compressed is read."),
            ("camera_info", "CameraInfo topic of the camera."),
        ),
        params_file="fuse.yaml",
        more=(
            (
                "rviz",
                "false",
                "Start RViz with input, MagImg, infrared and semantics side by side.",
            ),
        ),
        beside=_rviz,
    ).description()


def _rviz(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    if not truth(context, "rviz"):
        return []
    value = context.launch_configurations
    return [
        Node(
            package="rviz2",
            executable="rviz2",
            namespace=value["namespace"],
            arguments=["-d", str(share_dir() / "rviz" / "fuse.rviz")],
            remappings=[("image", value["image"])] if value["image"] != "image" else [],
            parameters=[{"use_sim_time": truth(context, "use_sim_time")}],
            prefix=process_prefix(),
        )
    ]
