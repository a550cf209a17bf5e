"""RUN/resume: where a killed run goes on, bit for bit on the same machine.

A state is two files. The tensors come first, under a name of their own; ``state.json``, which names them
and their hash, is replaced last and is the commit point. A kill at any moment leaves the older state or the
newer one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.errors import CheckpointError
from runtime.files import write_atomically
from train.config import TrainConfig
from train.loop.ranks import Ranks

FOLDER_NAME = "resume"
STATE_NAME = "state.json"
_SCHEMA = 1
_NAMED = 5


@dataclass(frozen=True)
class Position:
    """Where in a run the next step is.

    Attributes:
        stage: index into the recipe's stages; their number when all are done.
        epoch: within the stage.
        window: within the epoch.
        step: within the stage.
        total_step: over all stages.
    """

    stage: int = 0
    epoch: int = 0
    window: int = 0
    step: int = 0
    total_step: int = 0


@dataclass(frozen=True)
class State:
    """A saved state.

    Attributes:
        position: the next step.
        identity: what must not change between the processes of one run.
        tensors: trained weights, optimiser and random generators by prefixed name.
        values: JSON values beside them.
    """

    position: Position
    identity: dict[str, Any]
    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Returns the tensors of one prefix, which is taken off their names."""
        start = f"{prefix}."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}


def save_state(run: Path, state: State) -> None:
    """Writes RUN/resume and removes the tensors of the state before."""
    from safetensors.torch import save

    folder = run / FOLDER_NAME
    folder.mkdir(parents=True, exist_ok=True)
    encoded = save({name: tensor.cpu().contiguous() for name, tensor in state.tensors.items()})
    name = f"step-{state.position.total_step:08d}-stage-{state.position.stage}.safetensors"
    write_atomically(folder / name, encoded)
    record = {
        "schema": _SCHEMA,
        "position": asdict(state.position),
        "identity": state.identity,
        "values": state.values,
        "tensors": {"file": name, "sha256": hashlib.sha256(encoded).hexdigest()},
    }
    write_atomically(folder / STATE_NAME, (json.dumps(record, indent=1) + "\n").encode())
    for old in folder.glob("step-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_state(run: Path) -> State | None:
    """Returns the state that RUN holds, or None if it holds none.

    Raises:
        CheckpointError: it is damaged or of another version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = run / FOLDER_NAME / STATE_NAME
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] != _SCHEMA:
            raise ValueError(f"schema {record['schema']!r}, this version reads {_SCHEMA}")
        encoded = (path.parent / Path(record["tensors"]["file"]).name).read_bytes()
        if hashlib.sha256(encoded).hexdigest() != record["tensors"]["sha256"]:
            raise ValueError("the hash of its tensors differs")
        return State(Position(**record["position"]), record["identity"], load(encoded), record["values"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as err:
        raise CheckpointError(f"{path}: cannot be resumed from ({err}); start anew with --overwrite") from err


def clear_state(run: Path) -> None:
    """Removes RUN/resume."""
    shutil.rmtree(run / FOLDER_NAME, ignore_errors=True)


def check_identity(run: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuses to go on with anything but what the run was started with.

    Raises:
        CheckpointError: the settings that an earlier version did not have, or else the first fact that
            differs, as it was and as it is.
    """
    if not found and wanted:
        raise CheckpointError(
            f"{run}: does not say what it was made from, as imported runs and those of an earlier dgsnet do "
            "not; train into another folder, or start anew with --overwrite"
        )
    settings = [name for name, _value in TrainConfig().flat() if name in wanted and name not in found]
    if settings:
        more = f" and {len(settings) - _NAMED} more" if len(settings) > _NAMED else ""
        raise CheckpointError(
            f"{run}: was begun by another version of dgsnet, without the settings "
            f"{', '.join(settings[:_NAMED])}{more}; resume with that version, or start anew with --overwrite"
        )
    for name in sorted(set(found) | set(wanted)):
        if found.get(name) != wanted.get(name):
            raise CheckpointError(
                f"{run}: {name} was {found.get(name)!r} when the run began and is {wanted.get(name)!r} now; "
                "resume with what it began with, or start anew with --overwrite"
            )


def random_state(ranks: Ranks) -> dict[str, Tensor]:
    """Returns every process's generators, uint8, by name; the dropout that comes depends on them."""
    state = {f"cpu.{rank}": each for rank, each in enumerate(ranks.gather(torch.get_rng_state()))}
    if ranks.device != "cpu":
        gathered = ranks.gather(torch.cuda.get_rng_state(ranks.device))
        state |= {f"cuda.{rank}": each for rank, each in enumerate(gathered)}
    return state


def restore_random_state(tensors: dict[str, Tensor], ranks: Ranks) -> None:
    """Takes over this process's part of what ``random_state`` gave."""
    torch.set_rng_state(tensors[f"cpu.{ranks.rank}"])
    if ranks.device != "cpu":
        torch.cuda.set_rng_state(tensors[f"cuda.{ranks.rank}"], ranks.device)
