"""`magicfuse node`: runs `fuse_node` in this process, without a ROS installation."""

from __future__ import annotations

import argparse
import os

HELP = "run fuse_node here, as ros2 run does: magicfuse node --ros-args -r image:=/camera/image_raw"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that are passed on to ROS."""
    parser.add_argument(
        "--ros-args",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="...",
        help="remappings (-r image:=/camera/image_raw), parameters (-p model:=tiny), "
        "--params-file FILE; the parameters are listed by --parameters",
    )
    parser.add_argument(
        "--parameters", action="store_true", help="list the node's parameters, and end"
    )


def run(args: argparse.Namespace) -> int:
    """Run the node until Ctrl-C or SIGTERM, and return 0; or 2 if ROS cannot read the arguments."""
    from magicfuse_ros.ros.dds import use_shipped_profile
    from magicfuse_ros.ros.node.fuse_node import main

    use_shipped_profile(os.environ)
    if args.parameters:
        return main(["magicfuse node", "--help"])
    return main(["magicfuse node", "--ros-args", *args.ros_args])
