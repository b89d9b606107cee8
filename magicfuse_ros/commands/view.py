"""`magicfuse view`: a live page in the browser, for a camera, a file, a bag or a running node."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from magicfuse_ros.commands.arguments import add_engine_arguments, choose_topic, engine_arguments
from magicfuse_ros.commands.exit_status import FAILED, stop_on_signals

if TYPE_CHECKING:
    from magicfuse_ros.view.feeds import Feed
    from magicfuse_ros.view.shot import Show

HELP = "show input, enhanced, MagImg, infrared and semantics live, on a page in the browser"

HOST = "127.0.0.1"
PORT = 8350
_EXTRAS = {"aiohttp": "view", "av": "video", "rosbags": "bag"}
"""Which extra of the package brings a library that is missing; for those of ROS it is `ros`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "input",
        nargs="?",
        metavar="INPUT",
        help="video, picture, folder of pictures or bag; or the number of a camera: 0 is "
        "/dev/video0",
    )
    parser.add_argument(
        "--topic",
        help="image topic of the bag INPUT (default: its first); without INPUT, of a running "
        "camera, such as /camera/image_raw",
    )
    parser.add_argument(
        "--node",
        metavar="NAME",
        help="show what this running fuse_node publishes, such as /fuse_node, and set its "
        "parameters",
    )
    parser.add_argument(
        "--host", default=HOST, help=f"where to listen; 0.0.0.0 is every network ({HOST})"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"0 takes a free one ({PORT})")
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C; 2 with the reason on stderr if nothing can be shown."""
    stop = stop_on_signals()
    try:
        from magicfuse_ros.runtime.contract import EngineError
        from magicfuse_ros.view.server import PageServer, ServeError

        show = _show(args)
        try:
            source = show.state()["source"]
            PageServer(show, args.host, args.port).run(
                stop,
                lambda at: print(f"{source} is shown at {at} (Ctrl-C ends it)", flush=True),
            )
        finally:
            show.close()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extra = _EXTRAS.get(missing, "ros")
        problem = f"{missing} is not installed; run: pip install 'magicfuse_ros[{extra}]'"
    except (EngineError, ServeError, OSError, RuntimeError, ValueError) as error:
        problem = str(error)  # SourceError is a ValueError, BagError a RuntimeError
    else:
        problem = show.failure
    if problem and not stop.is_set():
        print(f"magicfuse view: {problem}", file=sys.stderr)
        return FAILED
    return stop.status


def _show(args: argparse.Namespace) -> Show:
    chosen = engine_arguments(args)
    if args.node is not None:
        if args.input is not None or args.topic is not None or chosen:
            raise ValueError("--node shows what a node made: give no INPUT, --topic or model too")
        _prepare_ros()
        from magicfuse_ros.view.node_show import NodeShow

        return NodeShow(f"/{args.node.strip('/')}")
    from magicfuse_ros.runtime.contract import EngineSettings

    settings = EngineSettings(temporal=0.0, **chosen)
    feed = _feed(args)
    from magicfuse_ros.runtime.engine import load_engine
    from magicfuse_ros.view.engine_show import EngineShow

    return EngineShow(feed, partial(load_engine, settings))


def _feed(args: argparse.Namespace) -> Feed:
    if args.input is None:
        if args.topic is None:
            raise ValueError("there is nothing to show; give an INPUT, --topic or --node")
        _prepare_ros()
        from magicfuse_ros.view.ros_topics import LiveTopic

        return LiveTopic(args.topic)
    from magicfuse_ros.bags.suffixes import is_bag
    from magicfuse_ros.view.feeds import BagClip, Playback, live_camera

    path = Path(args.input)
    if is_bag(path):
        from magicfuse_ros.bags.reader import BagReader

        with BagReader(path) as bag:
            topic = choose_topic(bag.topics, args.topic, path).name
        return Playback(path.name, BagClip(path, topic))
    if args.input.isdecimal() and not path.exists():
        from magicfuse_ros.sources.webcam import webcam_frames

        number = int(args.input)
        return live_camera(f"camera {number}", partial(webcam_frames, number))
    from magicfuse_ros.sources.source import open_source

    if args.topic is not None:
        raise ValueError("--topic names a topic of a bag; INPUT is not a bag")
    return Playback(path.name, open_source(path))


def _prepare_ros() -> None:
    from magicfuse_ros.ros.dds import prepare

    for warning in prepare(os.environ):
        print(f"magicfuse view: {warning}", file=sys.stderr)
