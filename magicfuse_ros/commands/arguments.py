"""What several commands read from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicfuse_ros.whole_files import check_writable

if TYPE_CHECKING:
    from magicfuse_ros.bags.reader import Topic


def size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT, in pixels."""
    width, x, height = text.partition("x")
    if not (x and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r}: give WIDTHxHEIGHT, such as 640x480")
    return int(width), int(height)


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads a whole number that is not below `least`."""

    def whole(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}; accepted: {least} or more")
        return int(text)

    return whole


def check_output(option: str, path: Path | None) -> None:
    """Check before work begins that a file can be written; raises ValueError or OSError."""
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"{option} is {path}, but its folder is missing; make it first")
    if path is not None:
        check_writable(path.parent)


def check_installed(needed: Mapping[str, str], otherwise: str = "") -> None:
    """Check that modules can be imported, each with the extra that brings it; raises ValueError.

    `otherwise` is what can be done without them, in the message.
    """
    missing = {name: extra for name, extra in needed.items() if not find_spec(name)}
    if missing:
        extras = ",".join(sorted(set(missing.values())))
        raise ValueError(
            f"{', '.join(missing)} is not installed; run: pip install 'magicfuse_ros[{extras}]'"
            + otherwise
        )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which model, for which size of input."""
    parser.add_argument("--model", help="shipped model or folder of weights (default: tiny)")
    parser.add_argument(
        "--resolution",
        type=size,
        metavar="WxH",
        help="what frames are fitted into (default: the model's own resolution)",
    )
    parser.add_argument(
        "--camera",
        type=size,
        metavar="WxH",
        help="size of the camera's frames, whose aspect decides the networks' input (default: the "
        "resolution)",
    )


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the arguments that were given; for the others, what is called has its own default."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


_ENGINE = ("model", "steps", "tau", "seed", "backend", "device", "paper_fusion")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how to run a model; for what is not given, the engine or the model has defaults."""
    parser.add_argument("--model", help="shipped model or folder of weights (default: tiny)")
    parser.add_argument(
        "--steps",
        type=int,
        help="DDIM steps a picture (default: the model's; others than it was trained for are "
        "warned of)",
    )
    parser.add_argument(
        "--tau",
        type=float,
        help="0 to 1: the most that the visible branch may weigh where a class radiates heat "
        "(default: the model's)",
    )
    parser.add_argument("--seed", type=int, help="of the starting noise (default: the model's)")
    parser.add_argument("--backend", help="what runs the networks (default: auto)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--paper-fusion",
        action="store_true",
        default=None,
        help="MagImg as the paper decodes it, even where the model refines it to the camera's size",
    )


def engine_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was given of `add_engine_arguments`, as arguments of `EngineSettings`."""
    return given(args, *_ENGINE)


def choose_topic(topics: tuple[Topic, ...], wanted: str | None, bag: Path) -> Topic:
    """Return the image topic to play: `wanted`, or else the first that the node did not make.

    Raises BagError if there is none; the message lists the bag's topics.
    """
    from magicfuse_ros.bags.image_topics import COMPRESSED_TYPE, IMAGE_TYPE
    from magicfuse_ros.bags.reader import BagError
    from magicfuse_ros.commands.node_session import NODE

    fitting = [
        topic
        for topic in topics
        if topic.type in (IMAGE_TYPE, COMPRESSED_TYPE)
        and topic.count
        and topic.name == (wanted or topic.name)
        and (wanted is not None or not topic.name.startswith(f"{NODE}/"))
    ]
    if not fitting:
        has = ", ".join(f"{topic.name} ({topic.type})" for topic in topics) or "none"
        what = f"no images on {wanted}" if wanted else "no camera images"
        raise BagError(f"bag {bag} has {what}; its topics: {has}")
    return min(fitting, key=lambda topic: topic.type != IMAGE_TYPE)
