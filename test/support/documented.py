"""The commands that the documents show, one by one.

In a document, an indented block or a fenced one marked `sh` holds commands, and so does an inline
`code span` that begins with a program's name; every other fenced block says what it is.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")))
INLINE = (
    "accelerate",
    "magicfuse",
    "make",
    "pip",
    "python",
    "rerun",
    "ros2",
    "sudo",
    "tensorboard",
)
_INLINE = re.compile(rf"`((?:{'|'.join(INLINE)}) [^`]+)`")


@dataclass(frozen=True)
class Command:
    """One command of a document: its words, as a shell would split them."""

    page: str
    line: int
    words: tuple[str, ...]
    inline: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


def fences(page):
    """Yield what each fenced block of a document says that it is."""
    marks = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    yield from marks[::2]


def commands(page):
    """Yield the commands of a document in their order."""
    fence, pending, at = None, "", 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            fence = line[3:] if fence is None else None
            continue
        if fence is None and not line.startswith("    "):
            for span in _INLINE.findall(line):
                yield from _split(page, number, span, inline=True)
            continue
        if fence not in (None, "sh"):
            continue
        at = at if pending else number
        pending += line.strip().removesuffix("\\")
        if not line.endswith("\\"):
            yield from _split(page, at, pending)
            pending = ""


def _split(page, line, text, *, inline=False):
    words = shlex.split(text.replace("<this repository>", "REPOSITORY"), comments=True)
    start = 0
    for end in [*(at for at, word in enumerate(words) if word == "&&"), len(words)]:
        if words[start:end]:
            yield Command(page.name, line, tuple(words[start:end]), inline)
        start = end + 1
