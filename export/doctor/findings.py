"""Which known-bad versions a machine has, and what its packages do to each other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from export.doctor.facts import Fact
from export.doctor.known_bad import TABLE, KnownBad

_BOTH_RUNTIMES = "https://github.com/microsoft/onnxruntime/issues/26996"
_PROVIDER_LINK = "https://github.com/microsoft/onnxruntime/issues/28611"
_KERNELS_PROBE = "https://github.com/huggingface/kernels"
_NVDLA = "https://github.com/blakeblackshear/frigate/issues/23582"


@dataclass(frozen=True)
class Finding:
    """Something that is likely to go wrong here.

    Attributes:
        found: what this machine has.
        breaks: what goes wrong.
        cure: what to do.
        source: where it was reported.
    """

    found: str
    breaks: str
    cure: str
    source: str

    def to_json(self) -> dict[str, str]:
        """Returns all fields."""
        return {"found": self.found, "breaks": self.breaks, "cure": self.cure, "source": self.source}

    def line(self) -> str:
        """Returns the warning for a person."""
        return f"{self.found}: {self.breaks}; {self.cure} ({self.source})"


def findings_for(facts: dict[str, Fact], table: tuple[KnownBad, ...] = TABLE) -> list[Finding]:
    """Returns the rows that this machine meets, then what its packages do to each other."""
    versions = _versions(facts)
    targets = {device["target"] for device in (facts["driver"].value or {}).get("devices", [])}
    is_jetson = facts["jetpack"].value is not None
    found = [
        Finding(f"{row.component} {versions[row.component]}", row.breaks, row.cure, row.source)
        for row in table
        if row.component in versions
        and _is_within(versions[row.component], row)
        and (not row.targets or targets & set(row.targets))
        and (is_jetson or not row.jetson_only)
    ]
    return found + _conflicts(facts, versions)


def _versions(facts: dict[str, Fact]) -> dict[str, str]:
    """Returns the version of every component of the table that this machine has, usable or not."""
    versions: dict[str, str] = {}
    jetpack = facts["jetpack"].value or {}
    from_dpkg = [v for n, v in jetpack.get("packages", {}).items() if "nvinfer" in n or n == "tensorrt"]
    trt = facts["tensorrt"].value or {}
    packaged = [v for n, v in trt.get("packages", {}).items() if n.startswith("tensorrt")]
    for stated in (trt.get("version"), *packaged, *from_dpkg):
        if stated and re.match(r"\d", stated):
            versions.setdefault("tensorrt", re.split(r"[-+~]", stated)[0])
    runtime = facts["onnxruntime"].value or {}
    if runtime.get("version"):
        versions["onnxruntime"] = runtime["version"]
    if (torch := facts["torch"].value) and torch["cuda"]:
        versions["torch-cuda"] = torch["cuda"]
    return versions


def _is_within(version: str, row: KnownBad) -> bool:
    return _parts(row.first) <= _parts(version) and (not row.below or _parts(version) < _parts(row.below))


def _parts(version: str) -> list[int]:
    """Returns the leading numbers of a version, those of "10.3.0.30-1+cuda12.5" being 10, 3, 0, 30."""
    return [int(part) for part in (re.match(r"[\d.]*", version) or [""])[0].split(".") if part]


def _conflicts(facts: dict[str, Fact], versions: dict[str, str]) -> list[Finding]:
    found = []
    runtime: dict[str, Any] = facts["onnxruntime"].value or {}
    rivals = sorted(runtime.get("packages", {}).keys() & {"onnxruntime", "onnxruntime-gpu"})
    if len(rivals) == 2:
        found.append(
            Finding(
                " and ".join(rivals),
                "both install the same files, and the one installed last decides what runs",
                "uninstall both, then install one of them",
                _BOTH_RUNTIMES,
            )
        )
    for library in runtime.get("tensorrt_provider_needs", []):
        wanted = library.rpartition(".so.")[2]
        installed = versions.get("tensorrt", "").partition(".")[0]
        if installed and wanted.isdigit() and wanted != installed:
            found.append(
                Finding(
                    f"tensorrt {versions['tensorrt']} beside onnxruntime {runtime['version']}",
                    f"the TensorRT provider of this onnxruntime links {library}, so it cannot load",
                    "use dgsnet's own tensorrt backend, or install the TensorRT that it links",
                    _PROVIDER_LINK,
                )
            )
    kernels: dict[str, Any] = facts["kernels"].value or {}
    if kernels and (not kernels["ours"] or kernels["foreign_package"]):
        name = f"package kernels {kernels['foreign_package'] or ''}".strip()
        found.append(
            Finding(
                f"{name} at {kernels['found']}",
                "it shares its name with dgsnet's kernels, and one of them replaces the other",
                "pip uninstall kernels, then install dgsnet again; training needs dgsnet's",
                _KERNELS_PROBE,
            )
        )
    if "nvdla" in str((facts["tensorrt"].value or {}).get("reason", "")):
        found.append(
            Finding(
                "tensorrt does not find libnvdla_compiler.so",
                "in a container on JetPack 7.2 import tensorrt fails without it",
                "mount the library from the host, or run outside of the container",
                _NVDLA,
            )
        )
    return found
