"""Faults planted in one part of a graph: that part is blamed, and no part of a sound graph is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export.checkpoint import CheckpointSource
from export.graph.detector import detector_graph
from export.graph.tower import tower_from_torch
from export.onnx_files import save_graph
from export.parity.bisect.boundaries import boundaries_of
from export.parity.bisect.faults import MISSING, PartFaultError
from export.parity.bisect.hops import export_drift, fp16_drift
from export.precision.conversion import fp16_from_fp32
from export.precision.policy import PrecisionPolicy
from runtime.errors import EngineLoadError, SpecError

BLOCKS = 4
FP16 = "model_fp16.onnx"


def mosaics(count: int) -> np.ndarray:
    """Noise, one black picture and one smooth one."""
    images = np.random.RandomState(3).randint(0, 256, (count, 224, 224, 3)).astype(np.uint8)
    images[0] = 0
    images[1] = np.arange(224, dtype=np.uint8)[:, None, None]
    return images


class TorchTower:
    """A random open_clip tower behind the names that a checkpoint offers."""

    def __init__(self, *, quick: bool = False, sharp: float = 1.0, **size: int) -> None:
        import torch
        from open_clip.transformer import QuickGELU, VisionTransformer

        torch.manual_seed(0)
        shape: dict[str, Any] = {"width": 96, "layers": BLOCKS, "heads": 3, "output_dim": 48} | size
        act = {"act_layer": QuickGELU} if quick else {}
        self.tower = VisionTransformer(image_size=224, patch_size=32, mlp_ratio=4.0, **shape, **act).eval()
        for block in self.tower.transformer.resblocks:
            block.attn.in_proj_weight.data *= sharp
            block.mlp.c_fc.weight.data *= sharp
        self.head = torch.nn.Linear(shape["output_dim"], 1)

    def reference(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        from runtime.spec import IMAGE_MEAN, IMAGE_STD

        with torch.inference_mode():
            pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255.0
            mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
            feature = self.tower((pixels - mean) / std)
            return self.head(feature).squeeze(1).numpy(), feature.numpy()

    def write(self, path: Path) -> Path:
        weight, bias = (p.detach().numpy() for p in (self.head.weight, self.head.bias))
        save_graph(detector_graph(tower_from_torch(self.tower), weight, bias), path)
        return path


@pytest.fixture(scope="module")
def tower() -> TorchTower:
    return TorchTower()


@pytest.fixture
def graph(tower: TorchTower, tmp_path: Path) -> Path:
    return tower.write(tmp_path / "model.onnx")


def change(path: Path, edit: Callable[[Any], None]) -> Path:
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)
    return path


def change_weight(model: Any, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    weight = next(w for w in model.graph.initializer if w.name == name)
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(edit(values.copy()).astype(values.dtype), name))


def change_epsilon(model: Any, names: str, value: float) -> None:
    for node in model.graph.node:
        if node.op_type == "LayerNormalization" and node.name.startswith(names):
            next(a for a in node.attribute if a.name == "epsilon").f = value


def other_gelu(model: Any, names: str) -> None:
    """Exact GELU becomes x sigmoid(1.702 x) in the blocks of these names; the new nodes have no name."""
    graph = model.graph
    for last in [n for n in graph.node if n.name.startswith(names) and n.name.endswith("/mlp/act/half")]:
        source = next(n.input[0] for n in graph.node if n.name == last.name.replace("/half", "/div"))
        slope = f"{last.name}/1.702"
        graph.initializer.append(numpy_helper.from_array(np.float32(1.702), slope))
        place = list(graph.node).index(last)
        steps = [
            helper.make_node("Mul", [source, slope], [f"{slope}/a"]),
            helper.make_node("Sigmoid", [f"{slope}/a"], [f"{slope}/b"]),
            helper.make_node("Mul", [source, f"{slope}/b"], list(last.output)),
        ]
        nodes = list(graph.node)
        del graph.node[:]
        graph.node.extend([*nodes[:place], *steps, *nodes[place + 1 :]])


def roll_first_rows(values: np.ndarray) -> np.ndarray:
    values[:2] = np.roll(values[:2], 1, axis=0)
    return values


def scale_channel(values: np.ndarray) -> np.ndarray:
    values[..., 7] *= 1.05
    return values


def freeze(values: np.ndarray) -> np.ndarray:
    values[0] = 2
    return values


def hidden_overflow(model: Any, block: int) -> None:
    """One hidden unit grows to about 10^6 behind the activation and is scaled back by the next product."""
    change_weight(model, f"block_{block}/mlp/proj/weight", lambda w: _scaled(w, 5, 2.0**-20))
    half = next(n for n in model.graph.node if n.name == f"block_{block}/mlp/act/half")
    factor = np.ones(384, np.float32)
    factor[5] = 2.0**10
    model.graph.initializer.append(numpy_helper.from_array(factor, "grow"))
    inner = half.output[0]
    half.output[0] = "before_growth"
    place = list(model.graph.node).index(half) + 1
    nodes = list(model.graph.node)
    del model.graph.node[:]
    steps = [("before_growth", "grown_once", "grow_1"), ("grown_once", inner, "grow_2")]
    grown = [
        helper.make_node("Mul", [given, "grow"], [result], name=f"block_{block}/mlp/{name}")
        for given, result, name in steps
    ]
    model.graph.node.extend([*nodes[:place], *grown, *nodes[place:]])


def _scaled(values: np.ndarray, row: int, factor: float) -> np.ndarray:
    values[row] *= factor
    return values


@pytest.mark.parametrize(
    "options",
    [{}, {"quick": True}, {"sharp": 6.0}, {"width": 64, "heads": 1, "layers": 7}],
    ids=["plain", "quick-gelu", "sharp-attention", "deeper"],
)
def test_drift__blames_no_part_of_a_sound_graph(options: dict[str, Any], tmp_path: Path) -> None:
    tower = TorchTower(**options)
    fp32 = tower.write(tmp_path / "model.onnx")
    fp16_from_fp32(fp32, tmp_path / FP16, PrecisionPolicy(fp32_blocks=(1,)))
    for report in (export_drift(tower, fp32, mosaics(7)), fp16_drift(fp32, tmp_path / FP16, mosaics(7))):
        assert report.first is None, report.table()
        assert report.count == 7
        json.dumps(report.to_json(), allow_nan=False)
    # It is FP16 that was compared: its drift is that of 11 bits, but where a block stays FP32.
    own = {part.part: part.own.error_max for part in report.parts}
    assert 1e-4 < (own["block_0"] or 0) < 2e-2
    # A block that stays FP32 reads what FP16 holds of the block before, and rounds nothing else.
    assert 1e-5 < (own["block_1"] or 0) < 0.8 * (own["block_0"] or 0)


def test_drift__names_every_part(graph: Path, tower: TorchTower) -> None:
    report = export_drift(tower, graph, mosaics(2))
    blocks = [f"block_{k}" for k in range(BLOCKS)]
    names = ["preprocess", "patch_embedding", "stem", *blocks, "pool", "projection", "head"]
    assert [part.part for part in report.parts] == names
    tokens = {part.part: part.own.tokens for part in report.parts}
    assert (tokens["patch_embedding"], tokens["block_2"], tokens["head"]) == (2 * 49, 2 * 50, 2)


FAULTS = {
    "weight-0": ("block_0", lambda m: change_weight(m, "block_0/mlp/fc/weight", roll_first_rows)),
    "weight-3": ("block_3", lambda m: change_weight(m, "block_3/attention/qkv/weight", scale_channel)),
    "epsilon-1": ("block_1", lambda m: change_epsilon(m, "block_1/ln_1", 1e-6)),
    "epsilon-3": ("block_3", lambda m: change_epsilon(m, "block_3/ln_2", 1e-12)),
    "epsilon-everywhere": ("stem", lambda m: change_epsilon(m, "", 1e-6)),
    "epsilon-of-blocks": ("block_0", lambda m: change_epsilon(m, "block_", 1e-6)),
    "gelu-2": ("block_2", lambda m: other_gelu(m, "block_2")),
    "gelu-everywhere": ("block_0", lambda m: other_gelu(m, "block_")),
    "mean": ("preprocess", lambda m: change_weight(m, "preprocess/mean", lambda v: v[:, ::-1])),
    "patches": ("patch_embedding", lambda m: change_weight(m, "stem/conv/weight", lambda v: v[:, ::-1])),
    "positions": ("stem", lambda m: change_weight(m, "stem/tokens", lambda v: np.roll(v, 1, axis=1))),
    "class-token": ("pool", lambda m: change_weight(m, "pool/index", lambda v: v + 1)),
    "projection": ("projection", lambda m: change_weight(m, "projection/weight", scale_channel)),
    "head": ("head", lambda m: change_weight(m, "head/bias", lambda v: v + 0.01)),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_export_drift__blames_the_part_with_the_fault(fault: str, graph: Path, tower: TorchTower) -> None:
    part, edit = FAULTS[fault]
    report = export_drift(tower, change(graph, edit), mosaics(4))
    assert report.first is not None
    assert report.first.part == part, report.table()
    if "everywhere" not in fault and fault != "epsilon-of-blocks":
        assert [one.part for one in report.parts if one.is_over] == [part]


def test_export_drift__names_the_node_of_a_frozen_batch(graph: Path, tower: TorchTower) -> None:
    frozen = change(graph, lambda m: change_weight(m, "block_2/attention/token_shape", freeze))
    with pytest.raises(EngineLoadError, match="block_2/attention/mix_tokens"):
        export_drift(tower, frozen, mosaics(6))


def leave_out(model: Any, block: int, *, nodes_too: bool) -> None:
    """The block behind reads what the block before gave."""
    given, result = (f"block_{k}/mlp/residual" for k in (block - 1, block))
    for node in model.graph.node:
        if not node.name.startswith(f"block_{block}/"):
            for k, name in enumerate(node.input):
                node.input[k] = given if name == result else name
    if nodes_too:
        kept = [node for node in model.graph.node if not node.name.startswith(f"block_{block}/")]
        del model.graph.node[:]
        model.graph.node.extend(kept)


@pytest.mark.parametrize("nodes_too", [False, True], ids=["unread", "removed"])
def test_export_drift__names_a_block_that_is_left_out(
    nodes_too: bool, graph: Path, tower: TorchTower
) -> None:
    """Not the sound block behind it, which reads what it should not."""
    change(graph, lambda m: leave_out(m, 2, nodes_too=nodes_too))
    with pytest.raises(PartFaultError, match="no result of block_2") as caught:
        export_drift(tower, graph, mosaics(2))
    assert (caught.value.form, caught.value.part, caught.value.how) == ("onnx-fp32", "block_2", MISSING)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_fp16_drift__blames_the_block_that_overflows(block: int, graph: Path, tower: TorchTower) -> None:
    """Sound in FP32, infinite in FP16; behind it every block drifts, and none of them is blamed first."""
    change(graph, lambda m: hidden_overflow(m, block))
    half = graph.with_name(FP16)
    fp16_from_fp32(graph, half, PrecisionPolicy())
    assert export_drift(tower, graph, mosaics(4)).first is None
    report = fp16_drift(graph, half, mosaics(4))
    assert report.first is not None
    assert report.first.part == f"block_{block}"
    assert report.first.own.nonfinite
    assert [one.part for one in report.parts if one.is_over] == [f"block_{block}"]
    assert all(one.drift.nonfinite for one in report.parts if one.part in ("pool", "projection", "head"))
    json.dumps(report.to_json(), allow_nan=False)


def test_fp16_drift__blames_the_block_whose_residual_leaves_the_range(graph: Path) -> None:
    def plant(model: Any) -> None:
        for block in (1, 2):
            change_weight(model, f"block_{block}/mlp/proj/bias", lambda b: _at(b.copy(), 3, 40000))

    change(graph, plant)
    fp16_from_fp32(graph, graph.with_name(FP16), PrecisionPolicy())
    report = fp16_drift(graph, graph.with_name(FP16), mosaics(4))
    assert report.first is not None
    assert report.first.part == "block_2"


def _at(values: np.ndarray, place: int, value: float) -> np.ndarray:
    values[place] = value
    return values


@pytest.mark.parametrize("name", ["block_1/mlp/fc/weight_fp16", "block_3/attention/out/weight_fp16"])
def test_fp16_drift__blames_a_weight_changed_in_the_fp16_file(graph: Path, name: str) -> None:
    half = graph.with_name(FP16)
    fp16_from_fp32(graph, half, PrecisionPolicy())
    report = fp16_drift(
        graph, change(half, lambda m: change_weight(m, name, lambda w: np.roll(w, 1, axis=0))), mosaics(4)
    )
    assert [one.part for one in report.parts if one.is_over] == [name.split("/")[0]]


def test_export_drift__sees_adapters_merged_twice(run_folder: Path, tmp_path: Path) -> None:
    """The run's own checkpoint: its adapters' scale is in the first block that has one."""
    checkpoint = CheckpointSource(run_folder)
    path = tmp_path / "model.onnx"
    checkpoint.write_onnx(path)
    assert export_drift(checkpoint, path, mosaics(4)).first is None
    twice = checkpoint.tower.transformer.resblocks[1].attn
    change(
        path,
        lambda m: change_weight(
            m,
            "block_1/attention/qkv/weight",
            lambda w: (
                (2 * twice.merged_in_proj_weight().detach().numpy() - twice.in_proj_weight.detach().numpy()).T
            ),
        ),
    )
    report = export_drift(checkpoint, path, mosaics(4))
    assert report.first is not None
    assert report.first.part == "block_1"


def test_fp16_drift__takes_a_graph_that_somebody_else_wrote(vit: Any, tmp_path: Path) -> None:
    fp32, half = tmp_path / "model.onnx", tmp_path / FP16
    onnx.save(vit(blocks=3), fp32)
    fp16_from_fp32(fp32, half, PrecisionPolicy())
    names = [boundary.name for boundary in boundaries_of(onnx.load(half))]
    assert names[:3] == ["preprocess", "patch_embedding", "stem"]
    assert fp16_drift(fp32, half, mosaics(4)).first is None
    change(half, lambda m: change_weight(m, "block_2/up.weight_fp16", lambda w: np.roll(w, 1, axis=0)))
    report = fp16_drift(fp32, half, mosaics(4))
    assert report.first is not None
    assert report.first.part == "block_2"


def test_boundaries__need_blocks(vit: Any) -> None:
    model = vit(blocks=1)
    for node in model.graph.node:
        node.name = node.name.replace("block_0/", "layer.0/")
    with pytest.raises(SpecError, match="found no node named block_"):
        boundaries_of(model)


def test_export_drift__refuses_another_model(graph: Path) -> None:
    with pytest.raises((SpecError, EngineLoadError)):
        export_drift(TorchTower(width=64, heads=1), graph, mosaics(2))


@pytest.mark.slow
def test_drift__at_the_size_of_vit_b_32(tmp_path: Path) -> None:
    tower = TorchTower(width=768, layers=12, heads=12, output_dim=512)
    fp32, half, images = tower.write(tmp_path / "model.onnx"), tmp_path / FP16, mosaics(3)
    fp16_from_fp32(fp32, half, PrecisionPolicy())
    assert export_drift(tower, fp32, images).first is None
    assert fp16_drift(fp32, half, images).first is None

    def found(path: Path, edit: Callable[[Any], None]) -> list[str]:
        model = onnx.load(path)
        edit(model)
        other = path.with_name(f"other_{path.name}")
        other.with_name(other.name + ".data").unlink(missing_ok=True)
        onnx.save(model, other, save_as_external_data=True, location=other.name + ".data")
        report = export_drift(tower, other, images) if path == fp32 else fp16_drift(fp32, other, images)
        return [part.part for part in report.parts if part.is_over]

    assert found(fp32, lambda m: change_weight(m, "block_7/mlp/fc/weight", roll_first_rows)) == ["block_7"]
    assert found(fp32, lambda m: change_epsilon(m, "block_4/ln_1", 1e-6)) == ["block_4"]
    assert found(fp32, lambda m: other_gelu(m, "block_"))[0] == "block_0"
    assert found(half, lambda m: change_weight(m, "block_9/mlp/fc/weight_fp16", roll_first_rows)) == [
        "block_9"
    ]
