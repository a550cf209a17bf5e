"""What an exported graph says of itself where no bundle is around it: its input, its outputs, its classes.

Only what set-decision cannot change: a threshold in the file would contradict the bundle's one day.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.bundle.manifest import canonical_json, graph_json
from runtime.spec import CLASSES, Preprocessing

if TYPE_CHECKING:
    from onnx import ModelProto

CONTRACT, PREPROCESSING, CLASS_NAMES = "dgsnet.contract", "dgsnet.preprocessing", "dgsnet.classes"


def contract_metadata(embed_dim: int, opset: int) -> dict[str, str]:
    """Returns the metadata of a contract graph, each value as canonical JSON.

    Args:
        embed_dim: width D of the embedding.
        opset: of the default domain.
    """
    values: dict[str, object] = {
        CLASS_NAMES: list(CLASSES),
        CONTRACT: graph_json(embed_dim, opset),
        PREPROCESSING: Preprocessing().to_json(),
    }
    return {key: canonical_json(value).decode() for key, value in values.items()}


def metadata_differences(model: ModelProto, embed_dim: int, opset: int) -> list[str] | None:
    """Returns the keys whose value is not what this version writes; None where the file states none of them.

    Args:
        model: a contract graph.
        embed_dim: width D that its outputs have.
        opset: that it imports.
    """
    stated = {entry.key: entry.value for entry in model.metadata_props}
    wanted = contract_metadata(embed_dim, opset)
    if not stated.keys() & wanted.keys():
        return None
    return [key for key, value in wanted.items() if stated.get(key) != value]
