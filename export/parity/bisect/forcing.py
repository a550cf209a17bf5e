"""A graph whose every part reads what a reference gave, instead of what the part before it made.

What a part then gives differs from the reference by that part's own doing: a fault in one block shows there
and nowhere else, however large it grows on its way through the blocks behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.cpu_session import open_cpu_session
from export.onnx_files import require_onnx
from export.parity.bisect.boundaries import Boundary
from runtime.errors import EngineLoadError, one_line
from runtime.spec import INPUT_NAME

if TYPE_CHECKING:
    from onnx import ModelProto

Values = dict[str, NDArray[np.float32]]


def force_parts(model: ModelProto, boundaries: Sequence[Boundary], halves: set[str]) -> None:
    """Rewrites a graph in place: results of parts become inputs of what reads them, and outputs.

    Args:
        model: an FP32 graph, or an emulated FP16 graph.
        boundaries: in the order of the graph; the last one is read by nothing.
        halves: tensors that hold FP16 values, to which what is put in their place is rounded too.
    """
    onnx = require_onnx()
    kinds, make_node = onnx.TensorProto, onnx.helper.make_node
    graph = model.graph
    given, rounding = {}, []
    for boundary in boundaries[:-1]:
        name = boundary.tensor
        given[name] = source = forced_name(name)
        graph.input.append(onnx.helper.make_tensor_value_info(source, kinds.FLOAT, None))
        if name in halves:
            given[name] = f"{source}/rounded"
            rounding += [
                make_node("Cast", [source], [f"{source}/half"], name=f"{source}/half", to=kinds.FLOAT16),
                make_node("Cast", [f"{source}/half"], [given[name]], name=given[name], to=kinds.FLOAT),
            ]
    nodes = list(graph.node)
    for node in nodes:
        for k, name in enumerate(node.input):
            node.input[k] = given.get(name, name)
    del graph.node[:], graph.output[:], graph.value_info[:]
    graph.node.extend([*rounding, *nodes])
    for boundary in boundaries:
        graph.output.add(name=boundary.tensor)


def forced_name(tensor: str) -> str:
    """Returns the name of the input that stands in for a tensor."""
    return f"forced/{tensor}"


class ForcedSession:
    """A graph that ``force_parts`` made, opened in ONNX Runtime on a CPU. Use as a context manager.

    Args:
        model: the graph; weights may lie in a data file.
        folder: where that data file is.
        boundaries: as given to ``force_parts``.
        name: what ran, for messages.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        EngineLoadError: the graph cannot be loaded.
    """

    def __init__(self, model: ModelProto, folder: Path, boundaries: Sequence[Boundary], *, name: str) -> None:
        self.name = name
        self._boundaries = list(boundaries)
        # At the level at which the emulation runs too; the casts of both are proved there.
        self._session = open_cpu_session(model.SerializeToString(), name, folder=folder, is_frugal=True)

    def __enter__(self) -> ForcedSession:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._session = None

    def run(self, images: NDArray[np.uint8], reference: Values) -> Values:
        """Returns what each part gives, by its name, when it reads what the reference gave.

        Args:
            images: mosaics, uint8 ``[n, 224, 224, 3]``, which the first part reads.
            reference: results of the reference on the same mosaics, by name of the part.

        Raises:
            EngineLoadError: the graph failed, as it does when the reference is of another shape.
        """
        fed: dict[str, NDArray[Any]] = {
            forced_name(boundary.tensor): np.ascontiguousarray(reference[boundary.name], np.float32)
            for boundary in self._boundaries[:-1]
        }
        try:
            values = self._session.run(
                [boundary.tensor for boundary in self._boundaries],
                {INPUT_NAME: np.ascontiguousarray(images), **fed},
            )
        except Exception as err:  # ONNX Runtime's exceptions share no base class below Exception
            raise EngineLoadError(f"{self.name}: running its parts failed ({one_line(err)})") from err
        return {b.name: np.asarray(value) for b, value in zip(self._boundaries, values, strict=True)}
