"""Every command in README.md, SECURITY.md and docs/ runs, or is what the project declares.

What needs a ROS installation, a network, root, a GPU or minutes is checked against the launch
files, parameters, executables, extras, targets and options that there are. All else is run, in the
order of its page, in a folder with the files that the page speaks of, with a small random model.
"""

import argparse
import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET

import dataset_trees
import numpy as np
import pytest
from rclpy.serialization import serialize_message
from std_msgs.msg import Header
from support.documented import PAGES, ROOT, commands, fences
from support.messages import encode_image
from support.small_models import SMALL_REFINED, stored
from support.system import random_domain
from support.videos import evenly, write_video

from magicfuse_ros.bags.reader import Topic
from magicfuse_ros.bags.writer import BagWriter
from magicfuse_ros.cli import COMMANDS, build_parser
from magicfuse_ros.ros.cloud.cloud_parameters import CLOUD_PARAMETERS
from magicfuse_ros.ros.node.parameters import PARAMETERS
from magicfuse_ros.training.recipe import read_recipe

ALL = [command for page in PAGES for command in commands(page)]
SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "scripts").iterdir())
SETUP = (ROOT / "setup.py").read_text(encoding="utf-8")
PACKAGE = ET.parse(ROOT / "package.xml").getroot()

NODES = {"fuse_node": PARAMETERS, "semantic_cloud": CLOUD_PARAMETERS, "example_planner": ()}
LAUNCH = {
    "fuse.launch.py": (PARAMETERS, {"image", "camera_info", "namespace", "rviz", "params_file"}),
    "semantic_cloud.launch.py": (CLOUD_PARAMETERS, {"points", "namespace", "params_file"}),
    "cameras.launch.py": (PARAMETERS, {"image", "camera_info", "cameras", "params_file"}),
}
# Needed beside what setup.py names, and only where a document says so.
OTHER_WHEELS = {".", "torch-tensorrt", "torch-tensorrt-rtx", "atheris", "neuro-low-light"}
DEBIAN = {"git", "make", "python3-venv", "chromium", "chromium-driver"}
# Run by other tests, because here they would take minutes.
ELSEWHERE = {
    "evaluate": "test_evaluate.py",
    "benchmark": "test_benchmark.py",
    "import-weights": "test_import_weights.py",
    "train": "test_train_command.py",
    "demo": "test_demo.py",
    "export-onnx": "test_build.py",
}
# Commands that run until Ctrl-C: what they say when they are ready, and their exit status then.
UNTIL_CTRL_C = {
    ("view",): ("is shown at", 130),
    ("node",): ("Active", 0),
    ("bag", "record"): ("recording into", 1),  # nothing was published
    ("bag", "play"): ("playing", 130),
}


# --- what is declared


def extras():
    """Every extra of setup.py."""
    return set(re.findall(r'^        "(\w+)": ', SETUP, re.MULTILINE))


def wheels():
    """Every requirement of setup.py, without its version."""
    strings = [node.value for node in ast.walk(ast.parse(SETUP)) if isinstance(node, ast.Constant)]
    return {re.match(r"[\w.-]*", text)[0] for text in strings if isinstance(text, str)}


def options(parser):
    """Every option of a parser and of those below it."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from options(below)


def magicfuse(words, *, inline=False):
    if inline:  # in a sentence: it may leave out what a whole command needs
        given = {word for word in words if word.startswith("--")}
        return words[0] in COMMANDS and given <= {*options(build_parser([words[0]]))}
    try:
        args = build_parser([words[0]]).parse_args(words)
    except SystemExit as leave:
        return leave.code == 0  # --help
    if words[0] == "train" and str(args.config).startswith("config/"):
        path = ROOT / args.config
        files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        stages = {read_recipe(file).stage for file in files}
        return args.stage == "all" or stages == {args.stage}
    return True


def make(words):
    goals = [word for word in words if "=" not in word]
    dry = subprocess.run(
        ["make", "-n", *goals], cwd=ROOT, capture_output=True, text=True, check=False
    )
    variables = {word.partition("=")[0] for word in words if "=" in word}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return dry.returncode == 0 and all(f"{name} ?=" in makefile for name in variables)


def pip(words):
    assert words[0] == "install"
    for word in words[1:]:
        name, _, wanted = word.rstrip("]").partition("[")
        if word in ("--no-deps", "-e"):
            continue
        if wanted and not (name in (".", "magicfuse_ros") and set(wanted.split(",")) <= extras()):
            return False
        if not wanted and name not in wheels() | OTHER_WHEELS:
            return False
    return True


def python(words):
    words = list(words)
    if words[:2] == ["-m", "pytest"]:
        markers = [words[at + 1] for at, word in enumerate(words[:-1]) if word == "-m"][1:]
        declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        files = [word for word in words if word.startswith("test/")]
        return all(f'"{name}: ' in declared for name in markers) and all(
            (ROOT / file).exists() for file in files
        )
    if words[:2] == ["-m", "venv"]:
        return True
    if words[0] == "-m":
        return importlib.util.find_spec(words[1]) is not None
    return (ROOT / words[0]).is_file()


def ros2(words):
    kind, *rest = words
    if len(rest) < 2:  # named in a sentence
        return kind in ("launch", "run", "param", "topic", "bag")
    if kind == "launch":
        package, file, *given = rest
        if package != "magicfuse_ros":
            return package == "autoware_image_projection_based_fusion"
        table, more = LAUNCH[file]
        names = {spec.name.replace(".", "_") for spec in table} | more | {"use_sim_time"}
        assert (ROOT / "launch" / file).is_file()
        return {word.partition(":=")[0] for word in given} <= names | {"--show-args"}
    if kind == "run":
        package, name, *given = rest
        known = {spec.name for spec in NODES[name]}
        values = [given[at + 1] for at, word in enumerate(given[:-1]) if word == "-p"]
        return package == "magicfuse_ros" and {each.partition(":=")[0] for each in values} <= known
    if kind == "param":
        node, name = rest[1].strip("/").rpartition("/")[2], rest[2]
        return name in {spec.name for spec in NODES[node]}
    return kind in ("topic", "lifecycle", "service", "security", "bag", "node")


def apt(words):
    assert words[:2] == ("apt", "install")
    depends = {each.text for each in PACKAGE if each.tag.endswith("depend")}
    for word in words[2:]:
        ours = word.removeprefix("ros-$ROS_DISTRO-").replace("-", "_")
        if not (word in DEBIAN or (word.startswith("ros-") and ours in depends)):
            return False
    return True


def script(words):
    path = ROOT / words[0]
    options = {word for word in words if word.startswith("--")}
    return os.access(path, os.X_OK) and all(f'"{name}"' in path.read_text() for name in options)


def of_the_shell(_words):
    return True


def wheel(name):
    return lambda _words: name in wheels()


KNOWN = {
    "magicfuse": magicfuse,
    "make": make,
    "pip": pip,
    "python": python,
    ".venv/bin/python": python,
    "/usr/bin/python3": python,
    "ros2": ros2,
    "sudo": apt,
    "accelerate": wheel("accelerate"),
    "tensorboard": wheel("tensorboard"),
    "rerun": wheel("rerun-sdk"),
    "colcon": lambda words: words[-1] == PACKAGE.findtext("name"),
    **{name: lambda words, name=name: script((name, *words)) for name in SCRIPTS},
    **dict.fromkeys(("cd", "git", "rosdep", "touch", ".", "mkdir", "cp", "export"), of_the_shell),
}


def test_every_fenced_block_says_what_it_is():
    kinds = {(page.name, kind) for page in PAGES for kind in fences(page)}

    assert {kind for _, kind in kinds} <= {"sh", "text", "yaml", "python"}, kinds


def test_every_command_is_of_a_known_kind():
    assert len(ALL) > 60
    assert [str(command) for command in ALL if command.words[0] not in KNOWN] == []


@pytest.mark.parametrize("program", sorted(KNOWN))
def test_every_command_is_what_the_project_declares(program):
    wrong = [
        str(command)
        for command in ALL
        if command.words[0] == program
        and not (
            magicfuse(command.words[1:], inline=command.inline)
            if program == "magicfuse"
            else KNOWN[program](command.words[1:])
        )
    ]

    assert wrong == []


# --- what runs


def bag(path, topic):
    with BagWriter(path) as writer:
        writer.add_topic(Topic(topic, "sensor_msgs/msg/Image"))
        for index in range(3):
            header = Header(frame_id="front")
            header.stamp.sec, header.stamp.nanosec = 5, index * 10**8
            picture = np.full((48, 64, 3), 60 + index, np.uint8)
            message = serialize_message(encode_image(picture, "rgb8", header))
            writer.write(topic, 5 * 10**9 + index * 10**8, message)


def prepare(folder, model):
    """Make the files that the pages speak of."""
    for name in ("night.jpg", "IMAGE.jpg", "photos/a.png", "photos/b.png"):
        dataset_trees.write(folder / name, dataset_trees.visible(1, level=40))
    write_video(folder / "street.mp4", evenly(4), size=(64, 48))
    for name in ("drive", "IN"):
        bag(folder / name, "/front/image_raw")
    shutil.copytree(folder / "drive", folder / "drives")  # whose file is a bag by itself
    shutil.copytree(model, folder / "runs" / "mine" / "model")


def runnable(page):
    """The `magicfuse` commands that are run here and that no earlier page has."""
    earlier = {each.words for before in PAGES[: PAGES.index(page)] for each in commands(before)}
    for command in dict.fromkeys(each.words for each in commands(page) if whole(each)):
        here = command[1] not in ELSEWHERE and "cuda" not in command
        if command not in earlier and (here or "--help" in command):
            yield list(command[1:])


def whole(command):
    """Whether this is a `magicfuse` command with all that it needs."""
    if command.words[0] != "magicfuse":
        return False
    return not command.inline or (len(command.words) > 3 and magicfuse(command.words[1:]))


def order(words):
    """What to run for a command, and its exit status."""
    ending = next(
        (end for key, end in UNTIL_CTRL_C.items() if tuple(words[: len(key)]) == key), None
    )
    until, status = ending or (None, 0)
    if words[0] == "view":
        words = [*words, "--port", "0"]  # others may run here
    if words[0] == "node":
        words = [*words, "-p", "backend:=eager"]
    elif (until is None and "fuse" in words) or (until == "is shown at" and "--node" not in words):
        words = [*words, "--backend", "eager"]  # quick to load
    if "--ray" in words:  # test_bag_fleet.py
        at = words.index("--ray")
        words = words[:at] + words[at + 2 :]
    return {"words": words, "until": until}, status


def test_the_commands_of_each_page_run_in_their_order(tmp_path):
    stored(SMALL_REFINED, tmp_path)
    model = tmp_path / "magicfuse" / "models" / "tiny"  # a user's own, found before the shipped one
    model.parent.mkdir(parents=True)
    (tmp_path / "small").rename(model)
    orders, expected = [], []
    for page in PAGES:
        folder = tmp_path / page.stem
        prepare(folder, model)
        for words in runnable(page):
            what, status = order(words)
            orders.append({"folder": str(folder), **what})
            expected.append((page.name, status))
    environment = os.environ | {
        "XDG_DATA_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "test")]),
        "ROS_DOMAIN_ID": str(random_domain()),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }
    ran = subprocess.run(
        [sys.executable, str(ROOT / "test" / "support" / "run_documented.py")],
        input=json.dumps(orders),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    wrong = []
    for what, (page, status), result in zip(orders, expected, results, strict=True):
        words = shlex.join(what["words"])
        print(f"{result['cpu_s']:5.1f} s of CPU  {page}: magicfuse {words}")
        if result["status"] != status:
            wrong.append(f"{page}: magicfuse {words}: {result}")
    assert len(results) > 15
    assert wrong == []


def test_commands_that_other_tests_run_are_named_with_them():
    left = {command.words[1] for command in ALL if command.words[0] == "magicfuse"}

    assert set(ELSEWHERE) <= left
    assert [name for name in ELSEWHERE.values() if not (ROOT / "test" / name).is_file()] == []
