"""Captions from folder names alone; nothing in them says whether a picture is real or generated."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.data.layout import Sample

PLAIN = "a photo"

# A subject is spelt as a word or words: "car", "Living_room". Digits, inner capitals and all capitals are
# how sources and generators are spelt (sdv1.4, ProGAN, GLIDE, n01440764).
_SUBJECT = re.compile(r"[A-Za-z][a-z]+(?:[ _-][A-Za-z]?[a-z]+)*")
# Folders that hold a whole split or data set.
_CONTAINERS = frozenset({
    "train", "training", "val", "valid", "validation", "dev", "test", "testing", "data", "dataset", "images",
    "image", "img", "imgs", "pictures", "photos", "photo", "misc", "other", "others", "unknown",
})  # fmt: skip
# Words for one of the two labels ("nature" is GenImage's word for real), and generators spelt like subjects.
_LABEL_WORDS = frozenset({
    "ai", "art", "cgi", "gan", "gen", "gt", "true", "false", "nature", "natural", "original", "originals",
    "authentic", "genuine", "pristine", "camera", "human", "machine", "computer", "positive", "negative",
    "adm", "blip", "dalle", "dall", "ddpm", "deepfakes", "diffusion", "firefly", "flux", "glide", "ideogram",
    "imagen", "ldm", "midjourney", "progan", "sd", "sdxl", "stable", "stylegan", "vqdm", "wukong", "biggan",
    "cyclegan", "gaugan", "stargan", "dreambooth",
})  # fmt: skip
_LABEL_BEGINNINGS = ("real", "fake", "deepfake", "generat", "synth", "artificial", "aig", "nonfake", "unreal")


def template_captions(samples: Sequence[Sample]) -> list[str]:
    """Returns "a photo of a <class>" from each sample's class folder, or "a photo", in their order.

    "A photo" is said where there is no class folder; where its name is no subject but a split, a label, a
    generator or a source; and where all samples of that name have the same label, which it would give away.
    """
    subjects = [_subject_of(sample) for sample in samples]
    labels: dict[str, set[int]] = defaultdict(set)
    for subject, sample in zip(subjects, samples, strict=True):
        labels[subject].add(sample.label)
    return [_sentence(subject) if len(labels[subject]) > 1 else PLAIN for subject in subjects]


def is_subject(folder: str) -> bool:
    """Says whether a folder's name can stand for what its pictures show."""
    if not _SUBJECT.fullmatch(folder):
        return False
    words = re.split("[ _-]", folder.lower())
    if set(words) & (_CONTAINERS | _LABEL_WORDS):
        return False
    return not any(word.startswith(_LABEL_BEGINNINGS) for word in words)


def _subject_of(sample: Sample) -> str:
    # A shard's JSON may name a generator too; only a folder's name is wanted.
    is_folder = sample.generator in sample.key.split("/")[:-1]
    if not is_folder or not is_subject(sample.generator):
        return ""
    return re.sub("[_-]", " ", sample.generator).lower()


def _sentence(subject: str) -> str:
    if not subject:
        return PLAIN
    return f"{PLAIN} of {'an' if subject[0] in 'aeiou' else 'a'} {subject}"
