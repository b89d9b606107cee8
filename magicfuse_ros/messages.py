"""Errors as one line of text, for logs, diagnostics and the command line."""

from __future__ import annotations


def one_line(error: object) -> str:
    r"""Return an error's text (or any text) without line breaks; where it has none, its type.

    Examples
    --------
    >>> one_line(ValueError("no\n  such file")), one_line(KeyboardInterrupt())
    ('no such file', 'KeyboardInterrupt')
    """
    return " ".join(str(error).split()) or type(error).__name__
