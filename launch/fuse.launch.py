"""One camera's `fuse_node`, and RViz beside it if wanted.

    ros2 launch magicfuse_ros fuse.launch.py image:=/camera/image_raw
    ros2 launch magicfuse_ros fuse.launch.py --show-args

Every parameter of the node is an argument, with the node's own default. An argument that is given
wins over `params_file`; one that is not given leaves the file's value alone.
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

from magicfuse_ros.resources import share_dir
from magicfuse_ros.ros.dds import PROFILE_VARIABLE, use_shipped_profile
from magicfuse_ros.ros.parameters import PARAMETERS, ParameterSpec

PACKAGE = "magicfuse_ros"

# An argument has no dot in its name, as launch files have it: semantic_id_map.
PARAMETER_ARGUMENTS = {spec.name.replace(".", "_"): spec for spec in PARAMETERS}

OTHER_ARGUMENTS = (
    ("image", "image", "Image topic; with input_transport:=compressed its /compressed is read."),
    ("camera_info", "camera_info", "CameraInfo topic of the camera."),
    ("namespace", "", "Namespace of the node: one a camera."),
    ("params_file", str(share_dir() / "config" / "fuse.yaml"), "Parameter file of the node."),
    ("use_sim_time", "false", "Take time from /clock, for bags and simulators."),
    ("rviz", "false", "Start RViz with input, MagImg, infrared and semantics side by side."),
)


def generate_launch_description() -> LaunchDescription:
    """Return the description; `ros2 launch` calls this."""
    given: set[str] = set()

    def remember(context: LaunchContext) -> None:
        # Before the declarations fill in defaults, only arguments that somebody gave have a value.
        given.update(context.launch_configurations)

    def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
        return _start(context, given)

    return LaunchDescription(
        [
            OpaqueFunction(function=remember),
            *(
                DeclareLaunchArgument(
                    name, default_value=launch_text(spec), description=_description(spec)
                )
                for name, spec in PARAMETER_ARGUMENTS.items()
            ),
            *(
                DeclareLaunchArgument(name, default_value=default, description=text)
                for name, default, text in OTHER_ARGUMENTS
            ),
            OpaqueFunction(function=start),
        ]
    )


def launch_text(spec: ParameterSpec) -> str:
    """Write a parameter's default the way it is typed after `name:=`."""
    return str(spec.default).lower() if spec.type is bool else str(spec.default)


def _description(spec: ParameterSpec) -> str:
    return f"{spec.description} Accepted: {spec.accepted}."


def _start(context: LaunchContext, given: set[str]) -> list[LaunchDescriptionEntity]:
    value = context.launch_configurations
    if not Path(value["params_file"]).is_file():
        # launch_ros would only warn and start the node with its defaults.
        raise ValueError(f"params_file:={value['params_file']}: there is no such file")
    overrides = {
        spec.name: ParameterValue(LaunchConfiguration(name), value_type=spec.type)
        for name, spec in PARAMETER_ARGUMENTS.items()
        if name in given
    }
    if "use_sim_time" in given:
        overrides["use_sim_time"] = ParameterValue(
            LaunchConfiguration("use_sim_time"), value_type=bool
        )
    # A namespace makes the node's name absolute. Without one, launch_ros writes the overrides for
    # any node, and a params_file that names this one would win over them.
    namespace = value["namespace"] or ("" if value.get("ros_namespace") else "/")
    node = LifecycleNode(
        package=PACKAGE,
        executable="fuse_node",
        name="fuse_node",
        exec_name="fuse_node",
        namespace=namespace,
        parameters=[value["params_file"], *([overrides] if overrides else [])],
        remappings=[
            (name, value[name]) for name in ("image", "camera_info") if value[name] != name
        ],
        prefix=_prefix(value.get("launch-prefix", "")),
        # A busy machine takes seconds to unload torch; the 5 s that launch gives cut it short.
        sigterm_timeout="15",
        output="screen",
        emulate_tty=True,
    )
    return [*_profile(), node, *([_rviz(context)] if _truth("rviz", value["rviz"]) else [])]


def _profile() -> list[LaunchDescriptionEntity]:
    """Large images need the shipped Fast DDS profile; one that the user chose stays."""
    environment = dict(os.environ)
    use_shipped_profile(environment)
    if environment.get(PROFILE_VARIABLE) == os.environ.get(PROFILE_VARIABLE):
        return []
    return [SetEnvironmentVariable(PROFILE_VARIABLE, environment[PROFILE_VARIABLE])]


def _prefix(users: str) -> str:
    """Let the kernel stop the node when launch dies: on SIGTERM, launch leaves orphans."""
    setpriv = shutil.which("setpriv")
    ours = f"{shlex.quote(setpriv)} --pdeathsig TERM" if setpriv else ""
    return f"{ours} {users}".strip()


def _rviz(context: LaunchContext) -> Node:
    value = context.launch_configurations
    namespace = value["namespace"]
    return Node(
        package="rviz2",
        executable="rviz2",
        namespace=namespace,
        arguments=["-d", str(share_dir() / "rviz" / "fuse.rviz")],
        remappings=[("image", value["image"])] if value["image"] != "image" else [],
        parameters=[{"use_sim_time": _truth("use_sim_time", value["use_sim_time"])}],
        prefix=_prefix(""),
    )


def _truth(name: str, text: str) -> bool:
    accepted = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in accepted:
        raise ValueError(f"{name}:={text}: accepted are true and false")
    return accepted[text.lower()]
