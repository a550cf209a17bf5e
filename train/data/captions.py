"""Captions of a data set's samples: a JSON map, text files beside the pictures, or folder names.

A map's keys are paths below the data set's root, as ``Sample.key`` is. The authors' form is read too:
absolute paths, from the same place or, where the data set has moved since, by what they end with.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import DataError, UsageError
from runtime.names import is_utf8, printable_name
from train.captioning.template import template_captions
from train.data.layout import Sample, read_sidecar

logger = logging.getLogger("dgsnet")

CAPTIONS_NAME = "captions.json"
TEMPLATE, SIDECAR = "template", "sidecar"
SIDECAR_SUFFIX = ".txt"
_WAYS = (
    "write them with python -m train caption DATA, or give --captions FILE, --captions template (folder "
    "names) or --captions sidecar (.txt files)"
)


class CaptionMap:
    """The captions of one JSON file, looked up by sample.

    Attributes:
        content: key -> caption, as the file holds it.
    """

    def __init__(self, path: Path, content: dict[str, str]) -> None:
        self.path = path
        self.content = content
        self._by_ending: dict[int, dict[str, list[str]]] = {}

    @classmethod
    def read(cls, path: Path) -> CaptionMap:
        """Reads a caption map.

        Raises:
            DataError: the file cannot be read, or is not one JSON object of texts.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as err:
            raise DataError(f"{_name(path)}: cannot be read as a JSON map of captions ({err})") from err
        if not isinstance(content, dict):
            raise DataError(
                f"{_name(path)}: found a JSON {type(content).__name__}, expected one object, path -> caption"
            )
        odd = [key for key, text in content.items() if not isinstance(text, str)]
        if odd:
            raise DataError(
                f"{_name(path)}: found {len(odd)} captions that are no text, first {printable_name(odd[0])}: "
                f"{str(content[odd[0]])[:80]!r}, expected texts only; correct or remove them"
            )
        return cls(path, content)

    def get(self, sample: Sample) -> str | None:
        """Returns the caption of a sample, None where the map has none.

        Tried in this order: its key; its absolute path; the one caption of all absolute paths in the map
        that end with its key.

        Raises:
            DataError: absolute paths of different captions end with the key.
        """
        for key in (sample.key, sample.path.absolute().as_posix()):
            if key in self.content:
                return self.content[key]
        depth = sample.key.count("/") + 1
        if depth not in self._by_ending:
            endings: dict[str, list[str]] = {}
            for key in self.content:
                if key.startswith("/"):
                    endings.setdefault("/".join(key.split("/")[-depth:]), []).append(key)
            self._by_ending[depth] = endings
        found = self._by_ending[depth].get(sample.key, [])
        if len({self.content[key] for key in found}) > 1:
            raise DataError(
                f"{_name(self.path)}: found different captions for {sample.name}, under "
                f"{printable_name(found[0])} and {printable_name(found[1])}; remove those of other data sets"
            )
        return self.content[found[0]] if found else None


def find_captions(samples: Sequence[Sample], choice: str, root: Path) -> list[str]:
    """Returns the caption of every sample, in their order.

    Args:
        samples: of the data set at ``root``.
        choice: "template" (folder names), "sidecar" (a .txt for each picture), the path of a JSON map, or
            "" for ROOT/captions.json.
        root: the data set's folder.

    Raises:
        UsageError: nothing was chosen and ROOT/captions.json is not there.
        DataError: captions are missing, empty or no text, or their file cannot be read.
    """
    if choice == TEMPLATE:
        captions = template_captions(samples)
        logger.info(
            "captions: made from folder names, %d different for %d pictures, such as %r",
            len(set(captions)), len(captions), max(captions, key=len, default=""),
        )  # fmt: skip
        return captions
    if choice == SIDECAR:
        return _complete(
            samples,
            [read_sidecar(sample, SIDECAR_SUFFIX) for sample in samples],
            f"{SIDECAR_SUFFIX} files of {_name(root)}",
            "write them with python -m train caption DATA --sidecar",
        )
    path = Path(choice) if choice else root / CAPTIONS_NAME
    if not choice and not path.exists():
        raise UsageError(
            f"{_name(path)}: no such file, and training needs a caption for each picture; {_WAYS}"
        )
    return load_captions(path, samples)


def load_captions(path: Path, samples: Sequence[Sample]) -> list[str]:
    """Returns the caption of every sample from a JSON map, in their order; see ``CaptionMap.get``.

    Raises:
        DataError: the file cannot be read, is not a map of texts, or lacks captions of samples.
    """
    captions = CaptionMap.read(path)
    example = next(iter(captions.content), None)
    shown = "it is empty" if example is None else f"its first key is {printable_name(example)}"
    return _complete(
        samples,
        [captions.get(sample) for sample in samples],
        _name(path),
        f"{shown}; fill it with python -m train caption DATA -o {_name(path)}",
    )


def sidecar_caption(sample: Sample) -> str:
    """Returns the text beside one picture, or in its shard.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    text = read_sidecar(sample, SIDECAR_SUFFIX)
    if text is None:
        raise DataError(f"found no {SIDECAR_SUFFIX} of its name, expected one beside it")
    return text.strip()


def flaw_of(caption: str) -> str | None:
    """Says what is wrong with a caption; None when nothing is."""
    if not caption.strip():
        return "empty"
    return None if is_utf8(caption) else "not valid Unicode"


def _complete(
    samples: Sequence[Sample], captions: Sequence[str | None], source: str, remedy: str
) -> list[str]:
    missing = [sample for sample, caption in zip(samples, captions, strict=True) if caption is None]
    if missing:
        raise DataError(
            f"{source}: captions are missing for {len(missing)} of {len(samples)} samples, "
            f"first {missing[0].name}; {remedy}"
        )
    complete = [caption.strip() for caption in captions if caption is not None]
    flawed = [(s, flaw) for s, text in zip(samples, complete, strict=True) if (flaw := flaw_of(text))]
    if flawed:
        sample, flaw = flawed[0]
        raise DataError(
            f"{source}: found {len(flawed)} captions of {len(samples)} samples that cannot be used, first "
            f"{sample.name} ({flaw}), expected at least one word; correct them, or write all anew with "
            "python -m train caption DATA --overwrite"
        )
    return complete


def _name(path: Path) -> str:
    return printable_name(str(path))
