"""One `semantic_cloud`, in the namespace of the `fuse_node` whose classes it paints with.

    ros2 launch magicfuse_ros semantic_cloud.launch.py points:=/lidar/points
    ros2 launch magicfuse_ros semantic_cloud.launch.py --show-args

Every parameter of the node is an argument, with the node's own default. An argument that is given
wins over `params_file`; one that is not given leaves the file's value alone.
"""

from __future__ import annotations

from launch import LaunchDescription

from magicfuse_ros.ros.cloud.cloud_parameters import CLOUD_PARAMETERS
from magicfuse_ros.ros.launching import ManagedNodeLaunch


def generate_launch_description() -> LaunchDescription:
    """Return the description; `ros2 launch` calls this."""
    return ManagedNodeLaunch(
        executable="semantic_cloud",
        parameters=CLOUD_PARAMETERS,
        topics=(("points", "PointCloud2 topic of the depth camera or LiDAR."),),
        params_file="semantic_cloud.yaml",
    ).description()
