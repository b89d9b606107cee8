"""Cost of the codec for a VGA frame, as a Markdown table: `python test/measure_codec.py`.

A measurement, not a test: the figures belong to the machine and to what else runs on it.
"""

from __future__ import annotations

import argparse
import os

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from support.timing import median_ms

from magicfuse_ros.ros.cdr import serialize_image
from magicfuse_ros.ros.images.codec import (
    decode_compressed,
    decode_image,
    encode_compressed,
)
from magicfuse_ros.ros.images.pixel_layouts import ENCODINGS, LAYOUTS

WIDTH, HEIGHT = 640, 480
PADDING = 64
JPEG_QUALITY = 85


def raw_image(encoding: str, scene: np.ndarray, *, padding: int = 0, bigendian: bool = False):
    """A message with the scene's grey values repeated into every number of the encoding."""
    layout = LAYOUTS[encoding]
    grey = cv2.cvtColor(scene, cv2.COLOR_RGB2GRAY)
    grey = np.resize(grey, (layout.rows(HEIGHT), WIDTH)).repeat(layout.channels, axis=1)
    scale = {"u1": 1, "u2": 257, "f4": 1 / 255}[layout.scalar]
    scalar = np.dtype(layout.scalar).newbyteorder(">" if bigendian else "<")
    rows = (grey * np.float64(scale)).astype(scalar).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)))
    message = Image(height=HEIGHT, width=WIDTH, encoding=encoding, step=rows.shape[1])
    message.is_bigendian = int(bigendian)
    message.data.frombytes(rows.tobytes())
    return message


def png_message(scene: np.ndarray) -> CompressedImage:
    message = CompressedImage(format="png")
    message.data.frombytes(cv2.imencode(".png", scene)[1].tobytes())
    return message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200, help="frames a row (default: 200)")
    parser.add_argument("--threads", type=int, default=1, help="OpenCV threads (default: 1)")
    arguments = parser.parse_args()
    cv2.setNumThreads(arguments.threads)
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    scene = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)

    print(
        f"{WIDTH} x {HEIGHT}, median of {arguments.repeats} frames, {arguments.threads} OpenCV "
        f"thread(s), OpenCV {cv2.__version__}, NumPy {np.__version__}, {os.cpu_count()} cores, "
        f"load average {os.getloadavg()[0]:.2f}\n"
    )
    print("| in | ms | padded rows, ms | big-endian, ms |\n|---|--:|--:|--:|")
    for encoding in ENCODINGS:
        cells = [raw_image(encoding, scene), raw_image(encoding, scene, padding=PADDING)]
        if LAYOUTS[encoding].scalar != "u1":
            cells.append(raw_image(encoding, scene, bigendian=True))
        figures = [
            f"{median_ms(lambda m=message: decode_image(m), arguments.repeats):.3f}"
            for message in cells
        ]
        print(f"| {encoding} | {' | '.join([*figures, ''][:3])} |")
    jpeg = encode_compressed(scene, Header(), JPEG_QUALITY)
    for name, message in (("JPEG", jpeg), ("PNG", png_message(scene))):
        figure = median_ms(lambda m=message: decode_compressed(m), arguments.repeats)
        print(f"| {name}, {len(message.data) // 1000} kB | {figure:.3f} | | |")

    print("\n| out | ms |\n|---|--:|")
    grey = scene[..., 1].copy()
    actions = {
        "rgb8": lambda: serialize_image(scene, "rgb8", Header()),
        "mono8": lambda: serialize_image(grey, "mono8", Header()),
        f"JPEG, quality {JPEG_QUALITY}": lambda: encode_compressed(scene, Header(), JPEG_QUALITY),
    }
    for name, action in actions.items():
        print(f"| {name} | {median_ms(action, arguments.repeats):.3f} |")


if __name__ == "__main__":
    main()
