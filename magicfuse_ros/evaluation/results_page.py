"""Results as a page of Markdown and as one of HTML that needs no other file."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

import cv2

from magicfuse_ros.evaluation.metrics import U8
from magicfuse_ros.evaluation.protocol_run import Findings
from magicfuse_ros.evaluation.scene_sheet import COLUMNS
from magicfuse_ros.evaluation.tables import Table

_QUALITY = 80
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; background: #fff }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #d5dae0 }
th:first-child, td:first-child { text-align: left; white-space: nowrap }
tr.quoted { color: #5c6670; font-style: italic }
img { max-width: 100%; height: auto }
"""


def markdown(intro: str, sections: Mapping[str, Findings], page: str) -> str:
    """Write what was found, by title; the HTML page of this name has the curves and pictures."""
    parts = ["# Results", intro, f"Curves and pictures: [{page}]({page}).", _QUOTED]
    for title, found in sections.items():
        parts += [f"### {title}", found.note] if found.note else []
        parts += [table.markdown().strip() for table in found.tables]
    return "\n\n".join(filter(None, parts)) + "\n"


def page(intro: str, sections: Mapping[str, Findings], sheet: U8) -> str:
    """Write tables, curves, and a picture (H, W, 3) RGB of scenes.

    Raises ImportError if matplotlib is not installed.
    """
    body = [f"<p>{html.escape(intro)}</p><p>{html.escape(_QUOTED)}</p>"]
    for title, found in sections.items():
        if found.note:
            body.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(found.note)}</p>")
        body += [_table(table) for table in found.tables]
        body += [curves_image(panels, name) for name, panels in found.curves.items()]
    half = cv2.resize(sheet, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(
        ".jpg", cv2.cvtColor(half, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, _QUALITY)
    )
    picture = base64.b64encode(jpeg.tobytes()).decode()
    said = f"From left to right: {', '.join(COLUMNS)}."
    body.append(f"<h2>Scenes</h2><p>{said}</p>")
    body.append(f'<img alt="{said}" src="data:image/jpeg;base64,{picture}">')
    head = f'<meta charset="utf-8"><title>MagicFuse: results</title><style>{_STYLE}</style>'
    inside = "\n".join(body)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body><h1>Results</h1>\n{inside}\n'
        "</body></html>\n"
    )


def curves_image(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], swept: str
) -> str:
    """Draw a panel a score, with its lines over what is swept, as an HTML image.

    Raises ImportError if matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    with mpl.rc_context({"svg.hashsalt": "magicfuse"}):
        figure, axes = plt.subplots(
            rows, columns, figsize=(3.4 * columns, 2.7 * rows), squeeze=False
        )
        for place, (score, lines) in zip(axes.flat, panels.items(), strict=False):
            for name, points in lines.items():
                finite = [(x, y) for x, y in points if math.isfinite(y)] or [(0.0, math.nan)]
                place.plot(*zip(*finite, strict=True), marker="o", markersize=3, label=name)
            place.set(title=score, xlabel=swept)
        for place in axes.flat[len(panels) :]:
            place.set_visible(False)
        for place in axes.flat[: len(panels)]:
            place.legend(fontsize=6)
        figure.tight_layout()
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    drawn = base64.b64encode(text.getvalue().encode()).decode()
    return f'<img alt="scores over {swept}" src="data:image/svg+xml;base64,{drawn}">'


_QUOTED = "Rows marked as quoted are the paper's own figures, of its weights on its images."


def _table(table: Table) -> str:
    names, rows, below = table.texts()

    def line(cells: Sequence[str], kind: str) -> str:
        quoted = ' class="quoted"' if cells[0].endswith("(quoted)") else ""
        inside = "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells)
        return f"<tr{quoted}>{inside}</tr>"

    lines = "\n".join([line(names, "th"), *(line(row, "td") for row in rows)])
    title = f"<h2>{html.escape(table.title)}</h2>"
    return f"{title}\n<table>\n{lines}\n</table>\n<p>{html.escape(below)}</p>"
