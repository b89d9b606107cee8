"""Both nodes as programs: how they explain themselves, start in odd surroundings, and stop."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.system import PATIENCE_S, ROOT, FuseNodeProcess, environment, random_domain

from magicfuse_ros.ros.cloud.cloud_parameters import CLOUD_PARAMETERS
from magicfuse_ros.ros.node.parameters import PARAMETERS

PROGRAMS = {
    "fuse_node": ("magicfuse_ros.ros.node.fuse_node", PARAMETERS),
    "semantic_cloud": ("magicfuse_ros.ros.cloud.semantic_cloud", CLOUD_PARAMETERS),
}
CLOUD = [sys.executable, "-m", PROGRAMS["semantic_cloud"][0]]


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_lists_the_parameters_and_starts_nothing(name):
    module, parameters = PROGRAMS[name]
    result = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        env=environment(random_domain()),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: {name} ")
    for spec in parameters:
        assert f"  {spec.name} (default: " in result.stdout
        assert f"{spec.description} Accepted: {spec.accepted}." in result.stdout


# Stands where Python imports the node's program, which takes most of a second: slow, so that the
# signal comes in the midst of it.
SLOW_IMPORT = """
import sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "rclpy":
            print("importing", flush=True)
            time.sleep(1.0)

sys.meta_path.insert(0, Slow())
from {module} import main
sys.exit(main())
"""


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_signal_amid_the_imports_is_a_clean_stop(name, number):
    program = SLOW_IMPORT.format(module=PROGRAMS[name][0])
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment(random_domain()),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
        assert process.stdout.read() == ""


@pytest.mark.fault
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_signal_amid_the_start_of_python_waits_for_the_program(name):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with subprocess.Popen(
        [ROOT / "scripts" / name],
        env=environment(random_domain(), PATH=path, _ROS_WHEELS_BOOTSTRAP_COMPLETE=None),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        command = Path(f"/proc/{process.pid}/cmdline")
        while b"python" not in command.read_bytes().split(b"\0")[0]:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
        assert process.stdout.read() == ""


@pytest.mark.fault
def test_odd_surroundings_and_odd_parameters_are_told_and_it_starts(tmp_path):
    home = tmp_path / "home"
    home.touch()  # no folder: nothing can be written there, not even by root
    node = FuseNodeProcess(
        random_domain(),
        tmp_path / "log",
        parameters={"parallel": "off", "stps": 4, "semantic_id_map": "person:6", "modle": "x"},
        HOME=str(home),
        ROS_LOG_DIR=None,
    )
    with node:
        node.wait_for_log("Active")
        warnings = "\n".join(node.lines("WARN"))
        assert f"{home}/.ros/log cannot be written: ROS logs to " in warnings
        for given, nearest in (("stps", "steps"), ("modle", "model")):
            assert f"Parameter {given} is ignored" in warnings
            assert f"did you mean {nearest}?" in warnings
        assert "Parameter semantic_id_map is ignored" in warnings
        assert "did you mean semantic.id_map?" in warnings
        assert len(node.lines("WARN")) == 4
        assert node.lines("ERROR") == []


def test_unknown_parameters_of_semantic_cloud_are_named_too(tmp_path):
    parameters = {"slopp": 0.5, "use_sim_time": True}
    log = tmp_path / "log"
    with FuseNodeProcess(random_domain(), log, parameters=parameters, command=CLOUD) as node:
        node.wait_for_log("Active")
        (line,) = node.lines("WARN")
    assert "Parameter slopp is ignored" in line
    assert "did you mean slop?" in line


def test_magicfuse_node_runs_the_node_here(tmp_path):
    command = [sys.executable, "-m", "magicfuse_ros", "node"]
    remapping = ["-r", "image:=/camera/image_raw"]
    parameters = {"autostart": False}
    log = tmp_path / "log"
    with FuseNodeProcess(
        random_domain(), log, parameters=parameters, arguments=remapping, command=command
    ) as node:
        node.wait_for_log("Waiting to be configured: autostart is false")
        node.send(signal.SIGINT)
        assert node.exit_code() == 0
        assert "Traceback" not in node.log
