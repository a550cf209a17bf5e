"""What this machine has left for a build: memory and disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export.doctor.child import ProbeError
from export.doctor.facts import memory_facts
from export.doctor.machine import Machine


@dataclass(frozen=True)
class Room:
    """Free bytes; None where the system does not say.

    Attributes:
        memory_bytes: what can be had without swapping, the limit of this container kept.
        swap_bytes: swap of the system.
        disk_bytes: free on the file system that gets the bundle.
    """

    memory_bytes: int | None
    swap_bytes: int
    disk_bytes: int


def room_for(folder: Path, machine: Machine | None = None) -> Room:
    """Returns what is free now.

    Args:
        folder: where the bundle lies or will lie; it need not exist.
        machine: whose; None for this one.
    """
    machine = machine or Machine()
    disk = int(machine.disk(folder)["free_bytes"])
    try:
        memory = memory_facts(machine)
    except ProbeError:
        return Room(None, 0, disk)
    free, swap = int(memory["available_bytes"]), int(memory["swap_bytes"])
    if memory["limit_bytes"] is not None:
        held = (machine.text("/sys/fs/cgroup/memory.current") or "0").strip()
        left = max(memory["limit_bytes"] - int(held), 0)
        if left < free:
            return Room(left, 0, disk)
    return Room(free, swap, disk)
