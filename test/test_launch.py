"""The launch files through the real launch system, with the package as it installs.

On PyPI there is no launch_ros, so these run only where ROS 2's own launch is installed.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rcl_interfaces.srv import GetParameters
from support.small_models import SMALL_FEW_STEP
from support.system import Listener, environment, random_domain

from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.ros.cloud.cloud_parameters import CLOUD_PARAMETERS
from magicfuse_ros.ros.node.parameters import PARAMETERS

launch_ros = pytest.importorskip(
    "launch_ros",
    reason="ROS 2's launch is not installed (it is not on PyPI); source a ROS 2 to run",
)

PATIENCE_S = 60.0
ROOT = Path(__file__).parents[1]

LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

arguments = [tuple(argument.split(":=", 1)) for argument in sys.argv[2:]]
service = LaunchService()
service.include_launch_description(LaunchDescription([
    IncludeLaunchDescription(
        PythonLaunchDescriptionSource(sys.argv[1]), launch_arguments=arguments
    )
]))
sys.exit(service.run())
"""

SHOW_ARGUMENTS = """
import sys, json
from launch.launch_description_sources import get_launch_description_from_python_launch_file

description = get_launch_description_from_python_launch_file(sys.argv[1])
print(json.dumps({
    argument.name: "".join(part.text for part in argument.default_value)
    for argument in description.get_launch_arguments()
}))
"""


class Launched:
    """A launch service in a process of its own, with nodes that wait to be configured."""

    def __init__(self, installation, folder, *arguments, file="fuse.launch.py", **variables):
        self.domain = random_domain()
        self.log_path = folder / "launch.log"
        environment = installation.environment() | {
            "ROS_DOMAIN_ID": str(self.domain),
            "ROS_LOG_DIR": str(folder),
        }
        environment.pop("FASTDDS_DEFAULT_PROFILES_FILE", None)
        with self.log_path.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    installation.prefix / "bin" / "python3",
                    "-c",
                    LAUNCH,
                    installation.share / "launch" / file,
                    "autostart:=false",
                    *arguments,
                ],
                env=environment | variables,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self):
        return self.log_path.read_text(encoding="utf-8")

    def wait_for(self, text, count=1):
        end = time.monotonic() + PATIENCE_S
        while self.log.count(text) < count:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.05)

    def nodes(self):
        """Return the process ids of everything in the session but the launch service itself."""
        own = self.process.pid
        sessions = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rpartition(")")[2].split()
            except OSError:  # ended meanwhile
                continue
            sessions[int(status.parent.name)] = (int(fields[3]), fields[0])
        return {
            pid
            for pid, (session, state) in sessions.items()
            if session == own and pid != own and state != "Z"
        }

    def environments(self):
        """Return the environment of every node."""
        for node in self.nodes():
            entries = Path(f"/proc/{node}/environ").read_bytes().split(b"\0")
            yield dict(entry.decode().split("=", 1) for entry in entries if b"=" in entry)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        for node in self.nodes():
            os.kill(node, signal.SIGKILL)


def parameters(launched, *names, node="/fuse_node"):
    with Listener(launched.domain, node) as listener:
        values = listener.call(GetParameters, "get_parameters", GetParameters.Request(names=names))
    from rclpy.parameter import parameter_value_to_python

    return [parameter_value_to_python(value) for value in values.values]


@pytest.mark.parametrize(
    ("file", "table", "others"),
    [
        ("fuse.launch.py", PARAMETERS, {"image", "camera_info", "rviz"}),
        ("semantic_cloud.launch.py", CLOUD_PARAMETERS, {"points"}),
    ],
)
def test_the_arguments_defaults_are_the_nodes(installation, file, table, others):
    output = subprocess.check_output(
        [
            sys.executable,
            "-c",
            SHOW_ARGUMENTS,
            installation.share / "launch" / file,
        ],
        env=environment(0),
        text=True,
    )
    declared = yaml.safe_load(output)

    for spec in table:
        default = declared[spec.name.replace(".", "_")]
        assert (default if spec.type is str else yaml.safe_load(default)) == spec.default
    others = others | {"namespace", "params_file", "use_sim_time"}
    assert set(declared) == others | {spec.name.replace(".", "_") for spec in table}


def test_without_arguments_the_parameter_file_counts(installation, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("/**:\n  ros__parameters:\n    steps: 7\n    semantic: {min_confidence: 0.5}\n")

    with Launched(installation, tmp_path, f"params_file:={mine}") as launched:
        launched.wait_for("autostart is false")

        found = parameters(launched, "steps", "semantic.min_confidence", "jpeg_quality", "model")

    assert found == [7, 0.5, 85, "tiny"]


@pytest.mark.parametrize("name", ["/**", "/fuse_node"])
def test_an_argument_wins_over_the_parameter_file(installation, tmp_path, name):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"{name}:\n  ros__parameters:\n    steps: 7\n    jpeg_quality: 50\n")
    arguments = (
        f"params_file:={mine}",
        "steps:=3",
        "tau:=1",
        "model:=12",
        "semantic_id_map:=person:6, *:0",
        "use_sim_time:=true",
    )

    with Launched(installation, tmp_path, *arguments) as launched:
        launched.wait_for("autostart is false")

        names = ("steps", "tau", "model", "semantic.id_map", "use_sim_time", "jpeg_quality")
        found = parameters(launched, *names)

    assert found == [3, 1.0, "12", "person:6, *:0", True, 50]


def test_the_node_goes_into_its_namespace(installation, tmp_path):
    with Launched(installation, tmp_path, "namespace:=front", "steps:=2") as launched:
        launched.wait_for("autostart is false")

        assert parameters(launched, "steps", node="/front/fuse_node") == [2]


def test_semantic_cloud_takes_its_arguments_and_its_topic(installation, tmp_path):
    arguments = (
        "autostart:=true",
        "namespace:=front",
        "points:=/lidar/points",
        "occlusion_gap:=6",
        "extrinsic:=0 0 1 0 0 0",
    )

    with Launched(installation, tmp_path, *arguments, file="semantic_cloud.launch.py") as launched:
        launched.wait_for("Active: /lidar/points painted from /front/fuse_node/semantic/mask")

        names = ("occlusion.gap", "extrinsic", "queue")
        found = parameters(launched, *names, node="/front/semantic_cloud")

    assert found == [6, "0 0 1 0 0 0", 20]


def test_cameras_get_a_node_and_a_namespace_each(installation, tmp_path):
    """What one camera's launch file sets must not count as given for the next one."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("/**:\n  ros__parameters:\n    steps: 7\n    jpeg_quality: 50\n")
    arguments = ("cameras:=front rear", f"params_file:={mine}", "jpeg_quality:=70")

    with Launched(installation, tmp_path, *arguments, file="cameras.launch.py") as launched:
        launched.wait_for("autostart is false", count=2)
        lines = [Path(f"/proc/{node}/cmdline").read_bytes() for node in launched.nodes()]
        profiles = [each["FASTDDS_DEFAULT_PROFILES_FILE"] for each in launched.environments()]
        found = {
            name: parameters(launched, "steps", "jpeg_quality", node=f"/{name}/fuse_node")
            for name in ("front", "rear")
        }

    assert found == {"front": [7, 70], "rear": [7, 70]}
    assert len(lines) == 2
    assert all(b"\0image:=image_raw\0" in line + b"\0" for line in lines)
    assert profiles == [str(installation.share / "config" / "fastdds.xml")] * 2


@pytest.mark.parametrize("cameras", ["", "left left"])
def test_cameras_without_sense_are_named_and_end_the_launch(installation, tmp_path, cameras):
    with Launched(
        installation, tmp_path, f"cameras:={cameras}", file="cameras.launch.py"
    ) as launched:
        assert launched.process.wait(PATIENCE_S) == 1
        assert "accepted are one or more different names" in launched.log


def test_the_shipped_profile_is_set(installation, tmp_path):
    with Launched(installation, tmp_path) as launched:
        launched.wait_for("autostart is false")

        (found,) = [each["FASTDDS_DEFAULT_PROFILES_FILE"] for each in launched.environments()]

    assert found == str(installation.share / "config" / "fastdds.xml")


def test_the_users_own_profile_stays(installation, tmp_path):
    mine = tmp_path / "mine.xml"
    mine.write_bytes((ROOT / "config" / "fastdds.xml").read_bytes())

    with Launched(installation, tmp_path, FASTDDS_DEFAULT_PROFILES_FILE=str(mine)) as launched:
        launched.wait_for("autostart is false")

        (found,) = [each["FASTDDS_DEFAULT_PROFILES_FILE"] for each in launched.environments()]

    assert found == str(mine)


def test_the_launch_testing_suite_passes(installation, tmp_path):
    pytest.importorskip("launch_testing", reason="launch_testing is not installed")
    MagicFuse.from_config(SMALL_FEW_STEP).save_pretrained(tmp_path / "model")
    command = [installation.prefix / "bin" / "python3", "-m", "launch_testing.launch_test"]
    suite = ROOT / "test" / "launch" / "fuse.test.py"
    domain = {"ROS_DOMAIN_ID": str(random_domain()), "ROS_LOG_DIR": str(tmp_path)}

    done = subprocess.run(
        [*command, suite, f"model:={tmp_path / 'model'}", "backend:=eager"],
        env=installation.environment() | domain,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    # Before the end and after it; the names of tests and what they print come in between.
    outcomes = re.findall(r"^Ran (\d+) tests? in .*\n\n(.*)", done.stdout, re.MULTILINE)
    assert outcomes == [("1", "OK")] * 2, done.stdout


@pytest.mark.parametrize("argument", ["steps:=many", "rviz:=maybe", "params_file:=lost.yaml"])
def test_a_wrong_argument_is_named_and_ends_the_launch(installation, tmp_path, argument):
    with Launched(installation, tmp_path, argument) as launched:
        assert launched.process.wait(PATIENCE_S) == 1
        assert argument.partition(":=")[2] in launched.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("to_all", [False, True], ids=["launch", "group"])
def test_no_node_outlives_its_launch(installation, tmp_path, number, to_all):
    with Launched(installation, tmp_path) as launched:
        launched.wait_for("autostart is false")
        assert len(launched.nodes()) == 1

        if to_all:
            os.killpg(launched.process.pid, number)
        else:
            launched.process.send_signal(number)
        launched.process.wait(PATIENCE_S)

        end = time.monotonic() + PATIENCE_S
        while launched.nodes():
            assert time.monotonic() < end, launched.log
            time.sleep(0.05)
        if number == signal.SIGINT:
            assert "process has finished cleanly" in launched.log
