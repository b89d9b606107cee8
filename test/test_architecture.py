"""The house's rules: imports go down only, nothing that is read is run, `--help` stays light."""

import ast
import functools
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from magicfuse_ros.cli import COMMANDS, main

PACKAGE = Path(__file__).parents[1] / "magicfuse_ros"
FILES = sorted(PACKAGE.rglob("*.py"))

# Floor → the floors it may import from. Modules of the package's root (resources) are open to all.
MAY_IMPORT = {
    "model": {"model"},
    "sources": {"sources"},
    "runtime": {"runtime", "model"},
    "ros": {"ros", "sources", "runtime", "model"},
    "bags": {"bags", "ros", "sources", "runtime", "model"},
    "view": {"view", "bags", "ros", "sources", "runtime", "model"},
    "training": {"training", "sources", "runtime", "model"},
    "evaluation": {
        "evaluation",
        "training",
        "sources",
        "runtime",
        "model",
    },  # on training's degradations
    "commands": {
        "commands",
        "evaluation",
        "bags",
        "view",
        "training",
        "ros",
        "sources",
        "runtime",
        "model",
    },
}
MODEL_LIBRARIES = {"torch", "safetensors", "yaml", "numpy", "magicfuse_ros"}
HEAVY = ("torch", "rclpy", "cv2", "diffusers", "rosbags", "aiohttp")
SLOW = {"torchmetrics", "transformers", "diffusers", "matplotlib"}  # seconds, and seldom needed
LONGEST_FILE = 450  # lines; the aim is 300, one subject


@functools.cache
def nodes(path):
    """Return a file's syntax tree, flat; read once for all the rules."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path):
    """Return the full names of what a file imports, wherever in it."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(path):
    return path.relative_to(PACKAGE).parts[0]


def relative(path):
    return str(path.relative_to(PACKAGE))


def test_every_folder_is_a_known_floor():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}

    assert folders == set(MAY_IMPORT)


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != PACKAGE], ids=relative)
def test_imports_go_down(path):
    own = [name.split(".") for name in imports(path) if name.startswith("magicfuse_ros.")]
    floors = {parts[1] for parts in own if (PACKAGE / parts[1]).is_dir()}

    assert floors <= MAY_IMPORT[floor(path)]


def module(path):
    return ".".join(["magicfuse_ros", *path.relative_to(PACKAGE).with_suffix("").parts])


def test_no_import_leads_back_to_where_it_began():
    """Modules in the order of a topological sort: it raises `CycleError`, which names a circle."""
    modules = {module(path): path for path in FILES if path.name != "__init__.py"}
    graph = {
        name: {
            known
            for full in imports(path)
            for known in (full, full.rpartition(".")[0])
            if known in modules
        }
        for name, path in modules.items()
    }

    assert len(list(TopologicalSorter(graph).static_order())) == len(modules)


def test_no_file_name_has_two_subjects():
    """A reader who knows a name finds one file; the faces of packages and commands have no name."""
    counts = Counter(path.name for path in FILES if not path.name.startswith("__"))

    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("path", [path for path in FILES if floor(path) == "model"], ids=relative)
def test_model_needs_no_ros_and_no_image_library(path):
    libraries = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)

    assert libraries <= MODEL_LIBRARIES


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_only_ros_bags_view_and_commands_import_ros(path):
    libraries = {name.split(".")[0] for name in imports(path)}
    of_ros = {name for name in libraries if name in {"rclpy", "launch"} or name.endswith("_msgs")}

    assert not of_ros or floor(path) in {"ros", "bags", "view", "commands"}


def test_what_is_slow_to_import_is_imported_where_it_is_called():
    found = [
        relative(path)
        for path in FILES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and {ast.unparse(node).split()[1].split(".")[0]} & SLOW
    ]

    assert found == []


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_nothing_is_unpickled(path):
    """Pickled data runs code; only the exception of torch's safe loader may be named."""
    names = set(imports(path))
    assert not {name.split(".")[0] for name in names} & {"dill", "cloudpickle", "joblib", "shelve"}
    for node in nodes(path):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            assert node.attr == "UnpicklingError"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == "torch.load":
                assert keywords.get("weights_only") == "True"
            assert keywords.get("allow_pickle") in (None, "False")
    assert {name for name in names if name.startswith("pickle.")} <= {"pickle.UnpicklingError"}


SERVER = str(Path("view", "server.py"))
NETWORK = {"aiohttp", "ftplib", "http", "httpx", "huggingface_hub", "requests", "socket", "urllib"}
RUNS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.full_load", "yaml.unsafe_load"}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_nothing_is_fetched_and_no_text_is_run(path):
    """DDS and Ray have the network to themselves; models and data are files. One file serves."""
    network = {name for name in imports(path) if name.split(".")[0] in NETWORK}
    assert network == ({"aiohttp.WSMsgType", "aiohttp.web"} if relative(path) == SERVER else set())
    for node in nodes(path):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in RUNS
            assert "shell" not in {keyword.arg for keyword in node.keywords}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_has_one_subject(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


def test_help_is_light():
    """Commands import torch and ROS when they run, not when the command line is read."""
    program = (
        "import sys\n"
        "from magicfuse_ros.cli import build_parser\n"
        "build_parser()\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )

    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])

    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: magicfuse {command}")
