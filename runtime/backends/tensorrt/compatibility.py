"""Whether an engine of a manifest fits a version of TensorRT and a GPU. Standard library only."""

from __future__ import annotations

from runtime.bundle.engine_entry import EngineEntry

HOST_CODE_REASON = (
    "it brings machine code of its own for the CPU; if you trust where it comes from, add "
    "--allow-engine-host-code"
)
_AMPERE = 80
# Engines that run on several GPUs are not offered by JetPack; these are Xavier, Orin and Thor.
_JETSON = {"sm_72", "sm_87", "sm_101", "sm_110"}
# A version-compatible engine runs on later versions of its major one, and from 10 on 11 too.
_NEXT_MAJOR = {10: 11}


def mismatch(entry: EngineEntry, *, version: str | None, gpu: str, target: str) -> str | None:
    """Returns the one reason why an engine cannot run here, None if nothing speaks against it.

    Args:
        entry: the engine's line in the manifest.
        version: of the TensorRT that would run it, None when it is not known yet. JetPack's package states
            three parts of the four: those that it states are compared.
        gpu: name of the device.
        target: its compute capability, such as "sm_87".
    """
    if version and not _runs_on_version(entry, version):
        return f"built with {entry.version}, {version} is installed: build it again here"
    if target not in entry.targets and not _runs_on_ampere(entry, target):
        return f"built for {', '.join(entry.targets)}, this device is {target}"
    # A TensorRT plan holds kernels that were timed on one GPU, unless it was built for more.
    if entry.backend == "tensorrt" and entry.gpu != gpu and entry.hardware_compatible is None:
        return f"built on {entry.gpu}, this device is {gpu}"
    return None


def _runs_on_version(entry: EngineEntry, version: str) -> bool:
    stated, built = version.split("."), entry.version.split(".")
    if stated == built[: len(stated)]:
        return True
    if not entry.version_compatible or not all(part.isdigit() for part in (*stated, *built)):
        return False
    here, there = [int(part) for part in stated], [int(part) for part in built]
    return here[0] == _NEXT_MAJOR.get(there[0]) or (here[0] == there[0] and here > there[: len(here)])


def _runs_on_ampere(entry: EngineEntry, target: str) -> bool:
    if entry.hardware_compatible != "ampere-plus" or _JETSON & {target, *entry.targets}:
        return False
    number = target.removeprefix("sm_")
    return number.isdigit() and int(number) >= _AMPERE
