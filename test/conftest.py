"""Fixtures that several test files share, and which tests see a GPU: those marked `gpu`."""

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


HAS_GPU = torch.cuda.is_available()
"""Asked before any test hides it: CUDA looks at the environment once in a process."""


def pytest_collection_modifyitems(items):
    """Leave out what needs a GPU where there is none."""
    for item in items:
        if not HAS_GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU, and this machine has none"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Hide the GPU from other tests and from what they start, so that `auto` means the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        if not item.get_closest_marker("gpu"):
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setattr(torch.cuda, "device_count", lambda: 0)
        return (yield)


def run_folder(tmp_path_factory):
    """Return a folder of this run of the tests, however many processes share them."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep artifacts apart from the user's; all processes of this run share them."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(run_folder(tmp_path_factory) / "shared_cache"))
    yield
    patch.undo()


class Installation:
    """The package as `pip install .` leaves it, in a virtual environment of its own.

    Its dependencies are those of the Python that runs the tests.
    """

    def __init__(self, prefix):
        self.prefix = prefix
        self.share = prefix / "share" / "magicfuse_ros"

    def environment(self):
        """Variables of a shell that knows this installation and not the checkout."""
        variables = dict(os.environ)
        # For another interpreter than this one, see the wheels' bootstrap.
        variables.pop("_ROS_WHEELS_BOOTSTRAP_COMPLETE", None)
        # A sourced ROS 2 has its packages there; the checkout must not be.
        paths = [path for path in variables.pop("PYTHONPATH", "").split(os.pathsep) if path]
        paths = [path for path in paths if Path(path).resolve() != ROOT]
        if paths:
            variables["PYTHONPATH"] = os.pathsep.join(paths)
        others = filter(None, [variables.get("AMENT_PREFIX_PATH")])
        variables["AMENT_PREFIX_PATH"] = os.pathsep.join([str(self.prefix), *others])
        variables["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        variables["OMP_NUM_THREADS"] = "1"
        variables["PYTHONUNBUFFERED"] = "1"
        return variables


@pytest.fixture(scope="session")
def installation(tmp_path_factory):
    """The installed package; made once, however many processes share the tests."""
    folder = run_folder(tmp_path_factory)
    prefix, done = folder / "installation", folder / "installation.done"
    with (folder / "installation.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(prefix, ignore_errors=True)  # of a process that failed at it
            install(prefix, tmp_path_factory)
            done.touch()
    return Installation(prefix)


def install(prefix, tmp_path_factory):
    source = tmp_path_factory.mktemp("source") / "magicfuse_ros"
    # A copy: setuptools leaves build/ and egg-info beside what it builds.
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "install", "log", "*.egg-info")
    )
    wheels = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels)]
    run([*build, str(source)])
    run([sys.executable, "-m", "venv", "--without-pip", str(prefix)])
    python = prefix / "bin" / "python3"
    (wheel,) = wheels.glob("*.whl")
    run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)])
    # addsitedir and not a plain path: the dependencies have .pth files of their own.
    site = sysconfig.get_path("purelib", vars={"base": str(prefix), "platbase": str(prefix)})
    dependencies = sysconfig.get_path("purelib")
    line = f"import site; site.addsitedir({dependencies!r})\n"
    (Path(site) / "dependencies.pth").write_text(line)


def run(command):
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
