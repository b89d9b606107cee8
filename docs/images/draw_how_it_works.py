"""Draws docs/images/how_it_works.svg: `python docs/images/draw_how_it_works.py`.

The pictures are what `models/tiny` makes of one frame of the demo's dark street.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np

FIGURE = Path(__file__).with_name("how_it_works.svg")
FRAME = 138
SIZE = (1200, 560)
PICTURE = (208, 88)
PICTURES = {  # name: x, y, caption
    "input": (20, 236, "the camera's frame"),
    "enhanced": (960, 60, "enhanced: for people"),
    "magimg": (960, 236, "MagImg: for people"),
    "color": (960, 412, "mask and confidence: for planners"),
    "infrared": (600, 440, "infrared, imagined"),
}
BOXES = {  # name: x, y, width, what it is called, what it does
    "E": (268, 252, 96, "fit, E", "latent c"),
    "psi": (404, 100, 112, "Ψ", "restores: z0_ψ"),
    "phi": (404, 404, 112, "Φ", "imagines: z0_φ"),
    "FS": (548, 252, 126, "F & S", "weight w, classes"),
    "D": (690, 100, 96, "D", "320×240"),
    "R": (690, 252, 96, "R", "what is warm"),
    "guided": (822, 100, 106, "guided filter", "frame's detail"),
    "light": (822, 252, 106, "+ light", "where warm"),
}
ARROWS = (
    ("input", "E"), ("E", "psi"), ("E", "phi"), ("psi", "FS"), ("phi", "FS"), ("psi", "D"),
    ("D", "guided"), ("guided", "enhanced"), ("guided", "light"), ("FS", "R"), ("R", "light"),
    ("light", "magimg"), ("phi", "infrared"), ("FS", "color"),
)  # fmt: skip
NOTES = (
    (20, 478, "In every DDIM step F & S weigh the two noises by w,"),
    (20, 498, "and w is held to τ where a class is warm."),
    (20, 30, "At the model's resolution: six networks. At the camera's: the frame itself."),
)


def draw(pictures: Mapping[str, np.ndarray]) -> str:
    """Return the figure as SVG; `pictures` are (H, W, 3) RGB by the names of `PICTURES`."""
    width, height = SIZE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        "<style>text { font-family: sans-serif }</style>",
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9"',
        'orient="auto">',
        '<path d="M0 0L8 4L0 8z" fill="#667"/></marker>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    parts += [_arrow(_area(start), _area(end)) for start, end in ARROWS]
    for name, (x, y, caption) in PICTURES.items():
        width, height = PICTURE
        small = cv2.resize(pictures[name], (2 * width, 2 * height), interpolation=cv2.INTER_AREA)
        done = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
        data = base64.b64encode(done.tobytes()).decode()
        parts.append(
            f'<image x="{x}" y="{y}" width="{width}" height="{height}" '
            f'href="data:image/jpeg;base64,{data}"/>'
        )
        parts.append(_text(x, y + height + 18, caption))
    for x, y, width, title, what in BOXES.values():
        parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="56" rx="6" fill="#eef3fb" '
            'stroke="#4a6fa5"/>'
        )
        parts.append(_text(x + width / 2, y + 24, title, anchor="middle", weight="bold"))
        parts.append(_text(x + width / 2, y + 44, what, anchor="middle", size=12))
    parts += [_text(x, y, note, size=13, colour="#667") for x, y, note in NOTES]
    return "\n".join([*parts, "</svg>\n"])


def _area(name: str) -> tuple[float, float, float, float]:
    if name in PICTURES:
        return (*PICTURES[name][:2], *PICTURE)
    return (*BOXES[name][:3], 56)


def _arrow(start: tuple[float, ...], end: tuple[float, ...]) -> str:
    """Draw an arrow from the right side of one area to the left side of the other."""
    (x, y, width, height), (to_x, to_y, to_width, to_height) = start, end
    if abs(x - to_x) < 60:  # one below the other
        from_y, at_y = (y + height, to_y) if to_y > y else (y, to_y + to_height)
        points = (x + width / 2, from_y), (to_x + to_width / 2, at_y)
    else:
        points = (x + width, y + height / 2), (to_x, to_y + to_height / 2)
    (x1, y1), (x2, y2) = points
    return f'<path d="M{x1} {y1}L{x2} {y2}" stroke="#667" fill="none" marker-end="url(#tip)"/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    weight: str = "normal",
    size: int = 14,
    colour: str = "#223",
) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}" '
        f'font-size="{size}" fill="{colour}">{escape(text)}</text>'
    )


def main() -> None:
    """Fuse the frame and write the figure."""
    from magicfuse_ros.commands.demo import SAMPLE_DEGRADATION
    from magicfuse_ros.evaluation.clip_degradation import degradation
    from magicfuse_ros.resources import sample_video
    from magicfuse_ros.runtime.class_colors import colorize
    from magicfuse_ros.runtime.contract import EngineSettings
    from magicfuse_ros.runtime.engine import load_engine
    from magicfuse_ros.sources.source import open_source

    frames = (frame.rgb for frame in open_source(sample_video()).frames())
    clean = next(rgb for index, rgb in enumerate(frames) if index == FRAME)
    frame = degradation(SAMPLE_DEGRADATION)(clean, FRAME)
    engine = load_engine(EngineSettings(), lambda _text: None)
    result = engine.fuse(frame, frozenset({"infrared", "enhanced"}))
    pictures = {"input": frame, "enhanced": result.enhanced, "magimg": result.magimg}
    pictures["infrared"] = cv2.cvtColor(result.infrared, cv2.COLOR_GRAY2RGB)
    pictures["color"] = colorize(result.mask, result.magimg, engine.labels.palette())
    engine.close()
    FIGURE.write_text(draw(pictures), encoding="utf-8")


if __name__ == "__main__":
    main()
