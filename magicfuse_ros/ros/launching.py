"""What the launch files share: how to start a managed node with its parameters as arguments.

It needs ROS 2's launch and launch_ros, which are not on PyPI, so only launch files import it.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

from magicfuse_ros.resources import share_dir
from magicfuse_ros.ros.dds import PROFILE_VARIABLE, has_profile, use_shipped_profile
from magicfuse_ros.ros.parameter_table import ParameterSpec

PACKAGE = "magicfuse_ros"

Argument = tuple[str, str, str]
"""Name, default and description of a launch argument."""


@dataclass(frozen=True, kw_only=True)
class ManagedNodeLaunch:
    """A launch description of one node.

    Every parameter of the node is an argument, with the node's own default. An argument that is
    given wins over `params_file`; one that is not given leaves the file's value alone.

    Attributes
    ----------
    executable
        Name of the executable in lib/magicfuse_ros, and of the node.
    topics
        (name in the node, description) of every topic that an argument of the same name remaps.
    params_file
        Name of the shipped parameter file, in config/.
    more, beside
        Further arguments, and what returns the actions that are to start together with the node.
    """

    executable: str
    parameters: Sequence[ParameterSpec]
    topics: Sequence[tuple[str, str]]
    params_file: str
    more: Sequence[Argument] = ()
    beside: Callable[[LaunchContext], list[LaunchDescriptionEntity]] = lambda _context: []

    def description(self) -> LaunchDescription:
        """Return what `generate_launch_description` returns."""
        given: set[str] = set()

        def remember(context: LaunchContext) -> None:
            # Before the declarations fill in defaults, only arguments that somebody gave have a
            # value.
            given.update(context.launch_configurations)

        def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
            return [*_profile(), self._node(context, given), *self.beside(context)]

        return LaunchDescription(
            [
                OpaqueFunction(function=remember),
                *(
                    DeclareLaunchArgument(name, default_value=default, description=text)
                    for name, default, text in self._arguments()
                ),
                OpaqueFunction(function=start),
            ]
        )

    def _arguments(self) -> list[Argument]:
        file = str(share_dir() / "config" / self.params_file)
        return [
            *(
                (
                    argument_name(spec),
                    spec.default_text,
                    f"{spec.description} Accepted: {spec.accepted}.",
                )
                for spec in self.parameters
            ),
            *((name, name, text) for name, text in self.topics),
            ("namespace", "", "Namespace of the node: one a camera."),
            ("params_file", file, "Parameter file of the node."),
            ("use_sim_time", "false", "Take time from /clock, for bags and simulators."),
            *self.more,
        ]

    def _node(self, context: LaunchContext, given: set[str]) -> LifecycleNode:
        value = context.launch_configurations
        if not Path(value["params_file"]).is_file():
            # launch_ros would only warn and start the node with its defaults.
            raise ValueError(f"params_file:={value['params_file']}: there is no such file")
        overrides = {
            spec.name: ParameterValue(
                LaunchConfiguration(argument_name(spec)), value_type=spec.type
            )
            for spec in self.parameters
            if argument_name(spec) in given
        }
        if "use_sim_time" in given:
            overrides["use_sim_time"] = ParameterValue(
                LaunchConfiguration("use_sim_time"), value_type=bool
            )
        # A namespace makes the node's name absolute. Without one, launch_ros writes the overrides
        # for any node, and a params_file that names this one would win over them.
        namespace = value["namespace"] or ("" if value.get("ros_namespace") else "/")
        return LifecycleNode(
            package=PACKAGE,
            executable=self.executable,
            name=self.executable,
            exec_name=self.executable,
            namespace=namespace,
            parameters=[value["params_file"], *([overrides] if overrides else [])],
            remappings=[(name, value[name]) for name, _ in self.topics if value[name] != name],
            prefix=process_prefix(value.get("launch-prefix", "")),
            # A busy machine takes seconds to unload torch; the 5 s that launch gives cut it short.
            sigterm_timeout="15",
            output="screen",
            emulate_tty=True,
        )


def argument_name(spec: ParameterSpec) -> str:
    """Write a parameter's name without dots, as launch files have it: semantic_id_map."""
    return spec.name.replace(".", "_")


def process_prefix(users: str = "") -> str:
    """Return a launch prefix that lets the kernel stop the process when launch dies.

    Without it, a launch that is ended by SIGTERM leaves its processes running. `users` is the
    user's own launch prefix, which is kept.
    """
    setpriv = shutil.which("setpriv")
    ours = f"{shlex.quote(setpriv)} --pdeathsig TERM" if setpriv else ""
    return f"{ours} {users}".strip()


def truth(context: LaunchContext, name: str) -> bool:
    """Read an argument that is true or false; raise `ValueError` if it is neither."""
    text = context.launch_configurations[name]
    accepted = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in accepted:
        raise ValueError(f"{name}:={text}: accepted are true and false")
    return accepted[text.lower()]


def _profile() -> list[LaunchDescriptionEntity]:
    """Set the shipped Fast DDS profile, which large images need, unless the user chose one."""
    if has_profile(os.environ):
        return []
    environment: dict[str, str] = {}
    use_shipped_profile(environment)
    return [SetEnvironmentVariable(PROFILE_VARIABLE, environment[PROFILE_VARIABLE])]
