"""A form that cannot be compared part by part, and which part of it that is."""

from __future__ import annotations

import re

from export.parity.bisect.boundaries import PATCHES
from runtime.errors import SpecError

NOT_RUN, MISSING = "which does not run", "which is missing"
# A part's name at the start of a word, never inside a path: a folder may be called "head" too.
_PART = re.compile(r"(?<![\w/.-])(?:cast/)?(block_\d+|preprocess|stem|pool|projection|head)/")


class PartFaultError(SpecError):
    """A form breaks where its parts are to be compared; caught inside this package.

    Attributes:
        form: key of the form that is at fault, which may be the one that others are compared with.
        part: its part, "" where that is not known.
        how: what is wrong with the part, such as "which does not run".
    """

    def __init__(self, form: str, part: str, how: str, reason: str) -> None:
        super().__init__(reason)
        self.form, self.part, self.how = form, part, how


def part_in(text: str) -> str:
    """Returns the part whose node or weight a message names first; "" where it names none."""
    found = _PART.search(text)
    if found is None:
        return ""
    return PATCHES if text[found.start(1) :].startswith("stem/conv") else found[1]
