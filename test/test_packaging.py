"""What `pip install .` leaves: all that `ros2 launch` and `ros2 run` look for, and it runs."""

import os
import re
import signal
import subprocess
import time

import pytest
from support.system import random_domain

PATIENCE_S = 60.0


def test_the_ament_index_names_the_package(installation):
    index = installation.prefix / "share" / "ament_index" / "resource_index" / "packages"

    assert (index / "magicfuse_ros").is_file()


@pytest.mark.parametrize(
    "name",
    [
        "package.xml",
        "launch/cameras.launch.py",
        "launch/fuse.launch.py",
        "launch/semantic_cloud.launch.py",
        "config/foxglove.json",
        "config/fuse.yaml",
        "config/semantic_cloud.yaml",
        "config/fastdds.xml",
        "config/sros2/policy.xml",
        "rviz/fuse.rviz",
    ],
)
def test_the_share_folder_has_its_files(installation, name):
    assert (installation.share / name).is_file()


def test_the_models_of_the_checkout_are_installed(installation, request):
    models = request.config.rootpath / "models"
    shipped = {path.relative_to(models) for path in models.rglob("*") if path.is_file()}

    installed = {
        path.relative_to(installation.share / "models")
        for path in (installation.share / "models").rglob("*")
        if path.is_file()
    }

    assert installed == shipped


def test_the_package_finds_its_files_where_they_were_installed(installation):
    program = (
        "from importlib.resources import files\n"
        "from magicfuse_ros.resources import share_dir\n"
        "from magicfuse_ros.model.labels import LabelSet\n"
        "page = files('magicfuse_ros.view').joinpath('index.html')\n"
        "print(share_dir(), len(LabelSet.load('drive')), page.is_file())\n"
    )

    output = subprocess.check_output(
        [installation.prefix / "bin" / "python3", "-c", program],
        env=installation.environment(),
        cwd=installation.prefix,
        text=True,
    )

    assert output.split() == [str(installation.share), "12", "True"]


def test_the_console_script_runs(installation):
    output = subprocess.check_output(
        [installation.prefix / "bin" / "magicfuse", "--version"],
        env=installation.environment(),
        cwd=installation.prefix,
        text=True,
    )

    assert output == "magicfuse 0.1.0\n"


def test_the_example_planner_starts(installation, tmp_path):
    """It waits for the nodes, or names what is missing to read their messages."""
    log = tmp_path / "log"
    with log.open("wb") as output:
        planner = subprocess.Popen(
            [installation.prefix / "lib" / "magicfuse_ros" / "example_planner"],
            env=installation.environment() | {"ROS_DOMAIN_ID": str(random_domain())},
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + PATIENCE_S
        while planner.poll() is None and "waiting for fuse_node" not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        planner.send_signal(signal.SIGTERM)
        missing = "apt install ros-$ROS_DISTRO-cv-bridge" in log.read_text()
        assert planner.wait(PATIENCE_S) == (2 if missing else 0), log.read_text()
    finally:
        planner.kill()
        planner.wait()


@pytest.mark.parametrize("name", ["fuse_node", "semantic_cloud"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_executable_starts_the_node_and_a_signal_ends_it(installation, tmp_path, name, number):
    """As `ros2 run magicfuse_ros fuse_node` starts it: by its path, which must be executable."""
    executable = installation.prefix / "lib" / "magicfuse_ros" / name
    assert os.access(executable, os.X_OK)
    log = tmp_path / "node.log"
    with log.open("wb") as output:
        node = subprocess.Popen(
            [executable, "--ros-args", "-p", "autostart:=false"],
            env=installation.environment() | {"ROS_DOMAIN_ID": str(random_domain())},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + PATIENCE_S
        while not re.search("autostart is false", log.read_text()):
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        node.send_signal(number)

        assert node.wait(PATIENCE_S) == 0, log.read_text()
    finally:
        node.kill()
        node.wait()
