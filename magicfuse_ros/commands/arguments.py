"""What several commands read from the command line."""

from __future__ import annotations

import argparse


def size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT, in pixels."""
    width, x, height = text.partition("x")
    if not (x and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r}: give WIDTHxHEIGHT, such as 640x480")
    return int(width), int(height)


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
