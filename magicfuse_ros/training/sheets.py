"""Picture sheets of the training data: every degradation at three strengths."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from magicfuse_ros.sources.picture_errors import PictureError
from magicfuse_ros.sources.pictures import read_picture, to_rgb8
from magicfuse_ros.training.datasets.cache import CacheSettings, training_size
from magicfuse_ros.training.degradation import EFFECTS, Rgb
from magicfuse_ros.training.degradation_mixes import Degradation, Recipe, degrade, sample_recipe
from magicfuse_ros.whole_files import write_whole

STRENGTHS = (0.3, 0.6, 1.0)


def degradation_sheet(image: Rgb, seed: int = 0, strengths: Sequence[float] = STRENGTHS) -> Rgb:
    """Draw a row for each effect, clean and then at each strength, and a last one of `mixed`."""
    rows = []
    for name in EFFECTS:
        row = [caption(image, "clean")]
        for strength in strengths:
            recipe = Recipe(name, (Degradation(name, strength),))
            degraded = degrade(image, np.random.default_rng(seed), recipe)
            row.append(caption(degraded, f"{name} {strength:g}"))
        rows.append(row)
    mixed = []
    for k in range(len(strengths) + 1):
        rng = np.random.default_rng((seed, k))
        recipe = sample_recipe(rng)
        mixed.append(caption(degrade(image, rng, recipe), recipe.name))
    return grid([*rows, mixed])


def caption(image: Rgb, text: str) -> Rgb:
    """Return a copy of an image with a line of text at its top left."""
    result: Rgb = np.array(image)
    for color, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(result, text, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, color, thickness)
    return result


def grid(rows: Iterable[Sequence[Rgb]]) -> Rgb:
    """Join rows of equally sized images into one picture."""
    return np.asarray(np.vstack([np.hstack(list(row)) for row in rows]), np.uint8)


def write_sheet(path: Path, sheet: Rgb) -> None:
    """Write an RGB picture as PNG or JPEG by the path's suffix.

    Raises
    ------
    OSError
        If the folder does not exist or cannot be written.
    """
    written, content = cv2.imencode(path.suffix, cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    if not written or not path.parent.is_dir():
        raise OSError(f"cannot write {path}; check that its folder exists and is writable")
    write_whole(path, content.tobytes())


def main(arguments: Sequence[str] | None = None) -> int:
    """Write an image's degradation sheet: `python -m magicfuse_ros.training.sheets IMAGE OUT`."""
    parser = argparse.ArgumentParser(description="Picture sheet of every degradation.")
    parser.add_argument("image", type=Path, help="a clean picture")
    parser.add_argument("sheet", type=Path, help="where to write, .png or .jpg")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        image = to_rgb8(read_picture(options.image))
    except PictureError as error:
        parser.error(str(error))
    height, width = image.shape[:2]
    size = training_size(width, height, CacheSettings())
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    write_sheet(options.sheet, degradation_sheet(small, options.seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
