"""A foreign exception as one short line, for messages that must not break over lines."""

from __future__ import annotations


def one_line(err: BaseException) -> str:
    """Returns the message, or the name of the exception if it has none; 200 characters at most."""
    text = " ".join(str(err).split()) or type(err).__name__
    return text if len(text) <= 200 else text[:200] + "..."
