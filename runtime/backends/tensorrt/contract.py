"""Whether an opened engine takes and gives what the graph contract and the manifest say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.bundle.engine_entry import EngineEntry
from runtime.errors import EngineLoadError
from runtime.spec import EMBEDDING_NAME, INPUT_NAME, LOGIT_NAME, MOSAIC_SIDE

if TYPE_CHECKING:
    import tensorrt


def check_contract(
    api: tensorrt._Module, engine: tensorrt.ICudaEngine, entry: EngineEntry, embed_dim: int, name: str
) -> None:
    """Compares tensors and optimisation profiles.

    Args:
        api: the module that opened the engine.
        engine: the engine.
        entry: its line in the manifest.
        embed_dim: width D that the manifest states.
        name: how messages call the engine.

    Raises:
        EngineLoadError: names, directions, types, shapes or profiles differ.
    """
    inward, outward = api.TensorIOMode.INPUT, api.TensorIOMode.OUTPUT
    expected = {
        INPUT_NAME: (inward, api.DataType.UINT8, (MOSAIC_SIDE, MOSAIC_SIDE, 3)),
        LOGIT_NAME: (outward, api.DataType.FLOAT, ()),
        EMBEDDING_NAME: (outward, api.DataType.FLOAT, (embed_dim,)),
    }
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    if sorted(names) != sorted(expected):
        raise _breaks(name, f"tensors {sorted(names)}", f"{sorted(expected)}")
    # An axis whose only size is known when the engine is built need not be a free one.
    only = {size for profile in entry.profiles for size in profile}
    batches = {-1, *(only if len(only) == 1 else ())}
    for tensor, (mode, kind, inner) in expected.items():
        if engine.get_tensor_mode(tensor) != mode or engine.get_tensor_dtype(tensor) != kind:
            found = f"{tensor} {engine.get_tensor_mode(tensor).name} {engine.get_tensor_dtype(tensor).name}"
            raise _breaks(name, found, f"{mode.name} {kind.name}")
        shape = tuple(engine.get_tensor_shape(tensor))
        if shape[:1] not in [(batch,) for batch in batches] or shape[1:] != inner:
            raise _breaks(name, f"{tensor} {list(shape)}", f"[batch, {', '.join(map(str, inner))}]")
    profiles = [
        tuple(shape[0] for shape in engine.get_tensor_profile_shape(INPUT_NAME, index))
        for index in range(engine.num_optimization_profiles)
    ]
    if profiles != [tuple(profile) for profile in entry.profiles]:
        raise _breaks(name, f"batch profiles {profiles}", f"{list(entry.profiles)}, which the manifest lists")


def _breaks(name: str, found: str, expected: str) -> EngineLoadError:
    return EngineLoadError(f"{name}: found {found}, expected {expected}; build the engine again")
