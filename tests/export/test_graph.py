"""The written graph against the torch tower that it came from, and its shape node by node."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export.graph.builder import WrittenGraph
from export.graph.detector import OPSET, detector_graph
from export.graph.rules import check_rules
from export.graph.tower import tower_from_torch
from export.onnx_checks import check_contract, check_structure
from export.onnx_files import load_model, save_graph
from runtime.errors import CheckpointError, SpecError, UsageError
from train.config import LoraConfig
from train.model.backbone import load_clip
from train.model.detector import DgsNet
from train.model.lora import add_lora, has_adapters, lora_disabled, lora_state


def written(
    name: str,
    path: Path,
    *,
    change: Callable[[nn.Module], object] = lambda _visual: None,
    opset: int = OPSET,
) -> DgsNet:
    torch.manual_seed(0)
    clip, info = load_clip(name, "random", seed=1)
    change(clip.visual)
    model = DgsNet(clip.visual, info.embed_dim).eval()
    save_graph(graph_of(model, opset), path)
    return model


def graph_of(model: DgsNet, opset: int = OPSET) -> WrittenGraph:
    head = model.head_image
    tower = tower_from_torch(model.visual)
    return detector_graph(tower, head.weight.detach().numpy(), head.bias.detach().numpy(), opset=opset)


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


@pytest.mark.parametrize(
    "change", [lambda _: None, quick_gelu, layer_scale], ids=["gelu", "quickgelu", "scale"]
)
def test_detector_graph__is_lean_and_named_by_part(
    tmp_path: Path, change: Callable[[nn.Module], object]
) -> None:
    written("dgsnet-tiny-p32", tmp_path / "m.onnx", change=change)
    model = onnx.load(tmp_path / "m.onnx")
    assert check_rules(model) == 4
    parts = {node.name.split("/")[0] for node in model.graph.node}
    assert parts == {"preprocess", "stem", "pool", "projection", "head", *(f"block_{k}" for k in range(4))}
    block = [node for node in model.graph.node if node.name.startswith("block_0/")]
    assert len(block) <= 30 + 2 * (change is layer_scale)
    assert [n.name for n in model.graph.node if n.op_type == "Gather"] == ["pool/class_token"]
    # TensorRT refuses any operator on uint8 before the cast to float.
    assert [n.op_type for n in model.graph.node if "images" in n.input] == ["Cast"]


def _nodes(model: Any, op: str, count: int, prefix: str) -> None:
    for index in range(count):
        model.graph.node.append(onnx.helper.make_node(op, ["a"], ["b"], name=f"{prefix}{index}"))


def _first(model: Any, name: str) -> Any:
    return next(node for node in model.graph.node if node.name == name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: _nodes(m, "Identity", 10, "block_1/x"), "block_1: found 40 nodes, expected at most 30"),
        (
            lambda m: _nodes(m, "Gather", 1, "block_2/x"),
            "block_2: found Gather, expected none of",
        ),
        (lambda m: _nodes(m, "Shape", 1, "block_0/x"), "block_0/x0: found Shape"),
        (lambda m: _nodes(m, "Slice", 1, "block_0/x"), "block_0/x0: found Slice"),
        (lambda m: _nodes(m, "Expand", 1, "stem/x"), "stem/x0: found Expand"),
        (lambda m: _nodes(m, "Add", 1, "block_9/x"), r"found blocks \[0, 1, 2, 3, 9\]"),
        (
            lambda m: _first(m, "block_1/ln_1").ClearField("name"),
            r"node '' \(LayerNormalization\)",
        ),
        (lambda m: setattr(_first(m, "pool/ln_post"), "name", "/visual/Add_3"), "node '/visual/Add_3'"),
        (
            lambda m: setattr(_first(m, "block_1/ln_1"), "name", "block_1/ln_2"),
            "two nodes named 'block_1/ln_2'",
        ),
        (
            lambda m: setattr(_first(m, "block_1/ln_1"), "op_type", "InstanceNormalization"),
            "block_1: found 1 LayerNormalization, expected 2",
        ),
    ],
)
def test_check_rules__names_the_rule_that_is_broken(
    tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    written("dgsnet-tiny-p32", tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    change(model)
    with pytest.raises(SpecError, match=message):
        check_rules(model)


@pytest.mark.parametrize("opset", [17, 19, 20])
def test_detector_graph__is_the_same_at_every_opset(tmp_path: Path, opset: int) -> None:
    model = written("dgsnet-tiny-p32", tmp_path / "m.onnx", opset=opset)
    check_structure(tmp_path / "m.onnx")
    found = onnx.load(tmp_path / "m.onnx")
    assert [o.version for o in found.opset_import] == [opset]
    assert largest_differences(model, tmp_path / "m.onnx", 2)[0] < 1e-5


def test_detector_graph__refuses_another_opset(tmp_path: Path) -> None:
    for opset in (16, 21):
        with pytest.raises(UsageError, match=f"found {opset}, expected one of 17, 18, 19, 20"):
            written("dgsnet-tiny-p32", tmp_path / "m.onnx", opset=opset)


def test_detector_graph__holds_the_weights_once(tmp_path: Path) -> None:
    """A large tower fits because its arrays are the module's own."""
    clip, info = load_clip("dgsnet-tiny-p32", "random", seed=1)
    model = DgsNet(clip.visual, info.embed_dim).eval()
    graph = graph_of(model)
    shared = {t.detach().numpy().__array_interface__["data"][0] for t in model.parameters()}
    arrays = [array for array in graph.weights.values() if array.nbytes >= 1024]
    copied = [array for array in arrays if array.__array_interface__["data"][0] not in shared]
    assert sum(array.nbytes for array in copied) < 0.02 * sum(array.nbytes for array in arrays)
    assert not graph.model.graph.initializer
    assert graph.parameters == sum(array.size for array in graph.weights.values())


def test_detector_graph__merges_adapters_like_the_module_itself(tmp_path: Path) -> None:
    def adapted(visual: nn.Module) -> None:
        add_lora(visual, LoraConfig())
        for tensor in lora_state(visual).values():
            tensor.add_(torch.randn_like(tensor) * 0.02)

    model = written("dgsnet-tiny-p32", tmp_path / "m.onnx", change=adapted)
    assert has_adapters(model.visual)
    assert largest_differences(model, tmp_path / "m.onnx", 3)[0] < 1e-5
    with lora_disabled(model.visual):
        assert largest_differences(model, tmp_path / "m.onnx", 3)[1] > 1e-3


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
@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("ViT-B-32", 12),
        ("ViT-B-32-quickgelu", 12),
        ("ViT-B-16", 12),
        ("ViT-L-14-quickgelu", 24),
        ("ViT-H-14", 32),
    ],
)
def test_detector_graph__real_shapes(tmp_path: Path, name: str, blocks: int) -> None:
    model = written(name, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").is_file()
    assert check_contract(tmp_path / "m.onnx") == {"ViT-L-14-quickgelu": 768, "ViT-H-14": 1024}.get(name, 512)
    check_structure(tmp_path / "m.onnx")
    assert check_rules(load_model(tmp_path / "m.onnx", weights=False)) == blocks
    for batch in (1, 2, 3, 8):
        assert largest_differences(model, tmp_path / "m.onnx", batch)[0] < 1e-4
