"""Faults planted by hand, each of which the gate must see and blame on the right hop."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from export.checkpoint import CheckpointSource
from export.parity.checks import ORIGIN
from export.parity.forms.form import FP16, MERGED, ONNX_FP32
from export.parity.gate import GateOptions, bundle_gate
from export.parity.outcome import GateReport
from tests.export.editing import edit_graph, edit_manifest, insert_after, set_weight

ENGINE, FILES = "engine onnxruntime:cpu", "files onnxruntime:cpu"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def few(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of each label: a wrong graph is wrong on any."""
    root = tmp_path_factory.mktemp("few")
    for label in ("0_real", "1_fake"):
        (root / "blur" / label).mkdir(parents=True)
        for path in sorted((data_set / "test" / "blur" / label).iterdir())[:2]:
            shutil.copy(path, root / "blur" / label)
    return root


@pytest.fixture
def gate(checkpoint: CheckpointSource, few: Path) -> Callable[[Path], GateReport]:
    def run(bundle: Path, **options: Any) -> GateReport:
        return bundle_gate(bundle, checkpoint, few, options=GateOptions(**options))

    return run


def lora_twice(model: Any, run: Path) -> None:
    from safetensors.numpy import load_file

    state = load_file(run / "checkpoint.safetensors")
    scale = json.loads((run / "checkpoint.json").read_text())["lora"]["scale"]
    for block in range(4):
        update = np.concatenate(
            [scale * state[f"lora.{block}.{p}.b"] @ state[f"lora.{block}.{p}.a"] for p in "qkv"]
        )
        set_weight(model, f"block_{block}/attention/qkv/weight", lambda w, u=update: w + u.T)


def set_epsilon(model: Any) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "LayerNormalization" and attribute.name == "epsilon":
                attribute.f = 1e-6


def quick_gelu_for_gelu(model: Any) -> None:
    """Each block's exact GELU becomes x sigmoid(1.702 x)."""
    graph = model.graph
    for div in [node for node in graph.node if node.name.endswith("/act/div")]:
        name, source = div.name.removesuffix("/div"), div.input[0]
        parts = {
            node.name.removeprefix(name + "/"): node
            for node in graph.node
            if node.name.startswith(name + "/")
        }
        number = numpy_helper.from_array(np.float32(1.702), f"{name}/1.702")
        graph.initializer.append(number)
        new = [
            helper.make_node("Mul", [source, number.name], [f"{name}/slope"], name=f"{name}/slope"),
            helper.make_node("Sigmoid", [f"{name}/slope"], [f"{name}/sigmoid"], name=f"{name}/sigmoid"),
            helper.make_node(
                "Mul", [source, f"{name}/sigmoid"], list(parts["half"].output), name=f"{name}/gate"
            ),
        ]
        place = list(graph.node).index(div)
        kept = [node for node in graph.node if node.name not in {part.name for part in parts.values()}]
        before = [node for node in list(graph.node)[:place]]
        rest = kept[len(before) :]
        del graph.node[:]
        graph.node.extend([*before, *new, *rest])


def swap_residual(model: Any) -> None:
    """The sum of block 2 takes what the attention gave instead of what came in."""
    node = next(node for node in model.graph.node if node.name == "block_2/mlp/residual")
    node.input[0] = "block_2/attention/out/add"


def freeze_batch(model: Any) -> None:
    """A reshape that always gives four rows: what tracing with one example of four leaves behind."""
    set_weight(model, "block_2/attention/token_shape", lambda shape: [4, *shape[1:]])


def mix_rows(model: Any) -> None:
    """Each row's embedding takes a tenth of its distance from the batch's mean: right for one row alone."""
    graph = model.graph
    node = next(node for node in graph.node if "embedding" in node.output)
    node.output[0] = "embedding_alone"
    axis = numpy_helper.from_array(np.array([0], np.int64), "axis_0")
    tenth = numpy_helper.from_array(np.float32(0.1), "tenth")
    graph.initializer.extend([axis, tenth])
    new = [
        helper.make_node("ReduceMean", ["embedding_alone", "axis_0"], ["row_mean"], name="mean", keepdims=1),
        helper.make_node("Sub", ["embedding_alone", "row_mean"], ["off"], name="off"),
        helper.make_node("Mul", ["off", "tenth"], ["little"], name="little"),
        helper.make_node("Add", ["embedding_alone", "little"], ["embedding"], name="sum"),
    ]
    insert_after(model, node, new)


def statistics_of_clip(model: Any) -> None:
    for name, values in (("preprocess/mean", CLIP_MEAN), ("preprocess/std", CLIP_STD)):
        set_weight(model, name, lambda w, v=values: np.reshape(v, w.shape))


def bgr(model: Any) -> None:
    """The graph reads the channels backwards, by its first convolution and its statistics."""
    for name in ("preprocess/mean", "preprocess/std", "stem/conv/weight"):
        set_weight(model, name, lambda w: w[:, ::-1])


def test_gate__passes_a_sound_bundle(sound: Path, gate: Callable[[Path], GateReport]) -> None:
    report = gate(sound)
    assert report.passed, [check.line() for check in report.failed]
    assert report.blame is None
    compared = [hop.key for hop in report.waterfall.hops if hop.status == "compared"]
    assert compared == [MERGED, ONNX_FP32, FP16, ENGINE, FILES]
    emulated = next(hop for hop in report.waterfall.hops if hop.key == FP16)
    assert emulated.previous is not None
    assert emulated.previous.logit.largest is not None
    assert 1e-6 < emulated.previous.logit.largest < 0.05  # it really computes in another precision


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(statistics_of_clip, id="clip-statistics"),
        pytest.param(bgr, id="bgr"),
        pytest.param(set_epsilon, id="layer-norm-epsilon"),
        pytest.param(quick_gelu_for_gelu, id="quick-gelu"),
        pytest.param(freeze_batch, id="batch-frozen"),
        pytest.param(mix_rows, id="rows-mixed"),
        pytest.param(
            lambda m: set_weight(m, "block_2/mlp/fc/weight", lambda w: np.roll(w, 1, axis=0)),
            id="weight-of-a-block",
        ),
        pytest.param(
            lambda m: set_weight(m, "block_3/attention/qkv/bias", lambda w: np.where(w == w[7], w + 2, w)),
            id="one-bias",
        ),
    ],
)
def test_gate__blames_the_fp32_graph(
    bundle: Path, gate: Callable[[Path], GateReport], change: Callable[[Any], None]
) -> None:
    edit_graph(bundle, change)
    report = gate(bundle)
    assert not report.passed
    assert report.blame == ONNX_FP32


def test_gate__blames_the_graph_for_adapters_merged_twice(
    bundle: Path, run_folder: Path, gate: Callable[[Path], GateReport]
) -> None:
    edit_graph(bundle, lambda model: lora_twice(model, run_folder))
    assert gate(bundle).blame == ONNX_FP32


def test_gate__blames_a_merge_that_adds_twice(
    bundle: Path, run_folder: Path, data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.model.lora import LoraAttention

    right = LoraAttention.merged_in_proj_weight

    def twice(self: LoraAttention) -> Any:
        return 2 * right(self) - self.in_proj_weight.detach()

    monkeypatch.setattr(LoraAttention, "merged_in_proj_weight", twice)
    report = bundle_gate(bundle, CheckpointSource(run_folder), data_set / "test")
    assert report.blame == MERGED


def fp16_weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], None]:
    return lambda model: set_weight(model, f"{name}_fp16", change)


def one_sign(weight: np.ndarray) -> np.ndarray:
    turned = weight.copy()
    turned[3, 5] *= -1
    return turned


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(
            fp16_weight("block_1/mlp/fc/weight", lambda w: np.roll(w, 1, axis=0)),
            "weight block_1/mlp/fc/weight_fp16",
            id="weight-of-a-block",
        ),
        # What follows moves no logit by more than FP16's own rounding does: the files tell.
        pytest.param(
            fp16_weight("block_3/mlp/fc/weight", one_sign), "weight block_3/mlp/fc/weight_fp16", id="one-sign"
        ),
        pytest.param(
            fp16_weight("block_2/attention/scale", lambda w: w * np.float16(1.01)),
            "weight block_2/attention/scale_fp16",
            id="attention-scale",
        ),
        pytest.param(set_epsilon, "attribute epsilon of stem/ln_pre", id="epsilon"),
        pytest.param(swap_residual, "block_2/mlp/residual reads other tensors", id="edge"),
    ],
)
def test_gate__blames_the_fp16_graph(
    bundle: Path, gate: Callable[[Path], GateReport], change: Callable[[Any], None], told: str
) -> None:
    edit_graph(bundle, change, "model_fp16.onnx")
    report = gate(bundle)
    assert report.blame == FP16
    text = next(check.text for check in report.failed if check.name == ORIGIN)
    assert text.startswith(told)


@pytest.mark.parametrize("size", [3, 4])
def test_gate__looks_at_every_batch_size(
    sound: Path, checkpoint: CheckpointSource, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """An engine that is off, or breaks with an error of its own kind, at one size only."""
    from runtime.backends.onnx_session import OnnxSession

    right = OnnxSession._infer

    def wrong(self: OnnxSession, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logit, embedding = right(self, images)
        if len(images) == size == 4:
            raise RuntimeError("out of order")
        return logit + np.float32(0.04 * (len(images) == size)), embedding

    monkeypatch.setattr(OnnxSession, "_infer", wrong)
    report = bundle_gate(sound, checkpoint, None, options=GateOptions(batch=2))
    assert report.blame == ENGINE
    assert f"batch {size}" in {check.name for check in report.failed} or size == 4
    assert size != 4 or any("RuntimeError: out of order" in check.text for check in report.failed)


def test_gate__sees_embeddings_of_another_length(
    sound: Path, checkpoint: CheckpointSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.backends.onnx_session import OnnxSession

    right = OnnxSession._infer

    def longer(self: OnnxSession, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logit, embedding = right(self, images)
        return logit, embedding * np.float32(1.001)

    monkeypatch.setattr(OnnxSession, "_infer", longer)
    report = bundle_gate(sound, checkpoint, None)
    assert report.blame == ENGINE
    assert all(check.name.endswith("length of embeddings") for check in report.failed)


def test_gate__sees_an_fp16_overflow_that_plain_onnx_runtime_misses(
    bundle: Path, gate: Callable[[Path], GateReport]
) -> None:
    """Up by 2^17 and down again in block 2: nothing in FP32, infinity in FP16."""

    def overflow(model: Any, suffix: str, dtype: Any) -> None:
        graph = model.graph
        node = next(node for node in graph.node if node.name == "block_2/mlp/fc/matmul")
        inner = node.output[0]
        node.output[0] = "grown"
        for name, value in (("up", 2.0**15), ("down", 2.0**-15)):
            graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name + suffix))
        new = [
            helper.make_node("Mul", ["grown", "up" + suffix], ["large"], name="block_2/mlp/up"),
            helper.make_node("Mul", ["large", "down" + suffix], [inner], name="block_2/mlp/down"),
        ]
        insert_after(model, node, new)

    edit_graph(bundle, lambda m: overflow(m, "", np.float32))
    edit_graph(bundle, lambda m: overflow(m, "_fp16", np.float16), "model_fp16.onnx")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    plain = onnxruntime.InferenceSession(
        str(bundle / "model_fp16.onnx"), options, providers=["CPUExecutionProvider"]
    )
    assert np.isfinite(plain.run(["logit"], {"images": np.zeros((1, 224, 224, 3), np.uint8) + 99})[0]).all()
    report = gate(bundle)
    assert report.blame == FP16
    assert any("NaN or infinite" in check.text for check in report.failed)
    block = next(check for check in report.failed if check.name == "finite in every block")
    assert "first block_2" in block.text


@pytest.fixture
def _wrong_runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fault inside the runtime's own preprocessing, wherever the runtime calls it from."""
    import runtime.decode.colour
    import runtime.decode.pillow_pixels
    import runtime.patches.selection

    kind = request.param
    if kind == "highest-first":
        right = runtime.patches.selection.selected_patches
        monkeypatch.setattr(
            runtime.patches.selection, "selected_patches", lambda picture: right(picture)[::-1]
        )
    elif kind == "alpha-on-black":
        monkeypatch.setattr(runtime.decode.colour, "BACKGROUND", (0, 0, 0))
    elif kind == "exif-ignored":
        monkeypatch.setattr(runtime.decode.pillow_pixels, "_orientation", lambda image: 1)
    else:
        whole = runtime.decode.pillow_pixels.PillowPixels.whole
        turn = {"bgr": lambda p: p[..., ::-1], "one-pixel-off": lambda p: np.roll(p, 1, axis=1)}[kind]
        monkeypatch.setattr(
            runtime.decode.pillow_pixels.PillowPixels,
            "whole",
            lambda pixels: np.ascontiguousarray(turn(whole(pixels))),
        )
    return str(kind)


@pytest.fixture(scope="module")
def rare_kinds(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain pictures, and among them one turned by EXIF and one with transparency."""
    folder = shutil.copytree(data_set / "test" / "blur" / "0_real", tmp_path_factory.mktemp("rare") / "mine")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(folder / "001.png").save(folder / "turned.jpg", exif=turned)
    layered = Image.open(folder / "002.png").convert("RGBA")
    layered.putalpha(90)
    layered.save(folder / "layered.png")
    return folder


@pytest.mark.parametrize(
    "_wrong_runtime",
    ["bgr", "highest-first", "one-pixel-off", "alpha-on-black", "exif-ignored"],
    indirect=True,
)
def test_gate__blames_the_runtimes_preprocessing(
    sound: Path, checkpoint: CheckpointSource, rare_kinds: Path, _wrong_runtime: str
) -> None:
    report = bundle_gate(sound, checkpoint, rare_kinds)
    assert report.blame == FILES
    text = next(check.text for check in report.failed if check.name == "mosaics byte by byte")
    told = {
        "bgr": "channels are reversed",
        "highest-first": "another order",
        "one-pixel-off": "decoded differently",
        # One file of eight, in the middle of a batch.
        "alpha-on-black": "1 of 8 files differ, first layered.png",
        "exif-ignored": "1 of 8 files differ, first turned.jpg",
    }
    assert told[_wrong_runtime] in text


def test_gate__blames_the_files_for_a_swapped_permutation(
    bundle: Path, gate: Callable[[Path], GateReport]
) -> None:
    def swap(manifest: dict[str, Any]) -> None:
        order = manifest["preprocessing"]["permutation"]
        order[0], order[1] = order[1], order[0]

    edit_manifest(bundle, swap)
    report = gate(bundle)
    assert report.blame == FILES
    assert any("another order (2 of 49 cells: 0, 1)" in check.text for check in report.failed)
    assert any(check.hop == "settings" and "permutation" in check.text for check in report.failed)


def test_gate__sees_other_statistics_in_the_manifest(
    bundle: Path, gate: Callable[[Path], GateReport]
) -> None:
    edit_manifest(bundle, lambda m: m["preprocessing"].update(mean=list(CLIP_MEAN)))
    report = gate(bundle)
    assert [check.hop for check in report.failed] == ["settings"]


def test_gate__sees_another_checkpoint(sound: Path, run_folder: Path, data_set: Path, tmp_path: Path) -> None:
    """A weight changed in the run after the bundle was built, its hashes made to agree."""
    from safetensors.torch import load_file, save

    from train.checkpoint import write_record

    other = shutil.copytree(run_folder, tmp_path / "run")
    state = load_file(other / "checkpoint.safetensors")
    state["lora.2.v.b"] = state["lora.2.v.b"] + 0.01
    content = save(state)
    (other / "checkpoint.safetensors").write_bytes(content)
    record = json.loads((other / "checkpoint.json").read_text())
    write_record(other, record | {"weights_sha256": hashlib.sha256(content).hexdigest()})
    report = bundle_gate(sound, CheckpointSource(other), data_set / "test")
    assert report.blame == ONNX_FP32
    assert any("other weights" in check.text for check in report.failed)
