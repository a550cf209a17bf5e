"""The written graph against the torch tower that it came from, and its shape node by node."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export.graph.detector import detector_graph
from export.graph.tower import tower_from_torch
from export.onnx_checks import check_contract, check_structure
from export.onnx_files import save_model
from runtime.errors import CheckpointError, SpecError
from train.backbone import load_clip
from train.model import DgsNet


def written(name: str, path: Path, *, change: Callable[[nn.Module], object] = lambda _visual: None) -> DgsNet:
    torch.manual_seed(0)
    clip, info = load_clip(name, "random", seed=1)
    change(clip.visual)
    model = DgsNet(clip.visual, info.embed_dim).eval()
    head = model.head_image
    graph = detector_graph(
        tower_from_torch(clip.visual), head.weight.detach().numpy(), head.bias.detach().numpy()
    )
    save_model(graph, path)
    return model


def largest_differences(model: DgsNet, path: Path, batch: int) -> tuple[float, float]:
    """Returns max |dlogit| and max |dembedding| on random mosaics, in a real ONNX Runtime session."""
    images = np.random.default_rng(batch).integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logit, embedding = session.run(["logit", "embedding"], {"images": images})
    with torch.no_grad():
        want_logit, want_embedding = model(torch.from_numpy(images))
    assert logit.shape == (batch,)
    return (
        float(np.abs(logit - want_logit.numpy()).max()),
        float(np.abs(embedding - want_embedding.numpy()).max()),
    )


def quick_gelu(visual: nn.Module) -> None:
    from open_clip.transformer import QuickGELU

    for block in visual.transformer.resblocks:
        block.mlp.gelu = QuickGELU()


def layer_scale(visual: nn.Module) -> None:
    from open_clip.transformer import LayerScale

    for block in visual.transformer.resblocks:
        block.ls_1, block.ls_2 = LayerScale(256, 0.3), LayerScale(256, 0.7)


def other_epsilon(visual: nn.Module) -> None:
    # Large enough that a graph with the default epsilon would be seen to differ.
    visual.transformer.resblocks[1].ln_1.eps = 0.5
    visual.ln_pre.eps = 0.1


@pytest.mark.parametrize(
    "change",
    [lambda _: None, quick_gelu, layer_scale, other_epsilon],
    ids=["gelu", "quickgelu", "scale", "epsilon"],
)
def test_detector_graph__equals_torch_at_every_batch(
    tmp_path: Path, change: Callable[[nn.Module], object]
) -> None:
    model = written("dgsnet-tiny-p32", tmp_path / "m.onnx", change=change)
    assert check_contract(tmp_path / "m.onnx") == 256
    check_structure(tmp_path / "m.onnx")
    for batch in (1, 2, 3, 8):
        logit, embedding = largest_differences(model, tmp_path / "m.onnx", batch)
        assert logit < 1e-5
        assert embedding < 2e-5


def test_detector_graph__sees_the_other_activation(tmp_path: Path) -> None:
    """The tolerance above is one that GELU for QuickGELU does not pass."""
    written("dgsnet-tiny-p32", tmp_path / "m.onnx")
    torch.manual_seed(0)
    clip, info = load_clip("dgsnet-tiny-p32", "random", seed=1)
    quick_gelu(clip.visual)
    other = DgsNet(clip.visual, info.embed_dim).eval()
    assert largest_differences(other, tmp_path / "m.onnx", 2)[1] > 1e-3


def test_detector_graph__is_lean_and_named_by_part(tmp_path: Path) -> None:
    written("dgsnet-tiny-p32", tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    operators = {node.op_type for node in model.graph.node}
    assert operators & {"Shape", "Slice", "Expand", "Concat", "ConstantOfShape", "If", "Loop"} == set()
    parts = {node.name.split("/")[0] for node in model.graph.node}
    assert parts == {"preprocess", "stem", "pool", "projection", "head", *(f"block_{k}" for k in range(4))}
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    block = [node for node in model.graph.node if node.name.startswith("block_0/")]
    assert len(block) <= 30
    assert sum(node.op_type == "LayerNormalization" for node in block) == 2
    # TensorRT refuses any operator on uint8 before the cast to float.
    assert [n.op_type for n in model.graph.node if "images" in n.input] == ["Cast"]


def test_detector_graph__same_weights_same_bytes(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        written("dgsnet-tiny-p32", tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_tower_from_torch__refuses_what_it_cannot_express() -> None:
    visual = load_clip("dgsnet-tiny-p32", "random", seed=1)[0].visual

    def broken(change: Callable[[nn.Module], object]) -> nn.Module:
        other = copy.deepcopy(visual)
        change(other)
        return other

    cases: list[tuple[Callable[[nn.Module], object], type[Exception], str]] = [
        (lambda v: setattr(v, "pool_type", "avg"), SpecError, "class-token pooling"),
        (lambda v: setattr(v.transformer.resblocks[2].mlp, "gelu", nn.ReLU()), SpecError, "ReLU"),
        (
            lambda v: setattr(v.transformer.resblocks[0].mlp, "gelu", nn.GELU("tanh")),
            SpecError,
            "activations",
        ),
        (
            lambda v: v.conv1.weight.data.fill_(float("inf")),
            CheckpointError,
            "conv1.weight: holds NaN or Inf",
        ),
    ]
    for change, kind, message in cases:
        with pytest.raises(kind, match=message):
            tower_from_torch(broken(change))
    with pytest.raises(SpecError, match="VisionTransformer"):
        tower_from_torch(nn.Linear(2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14-quickgelu"])
def test_detector_graph__real_shapes(tmp_path: Path, name: str) -> None:
    model = written(name, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").is_file()
    for batch in (1, 3):
        assert largest_differences(model, tmp_path / "m.onnx", batch)[0] < 1e-4
