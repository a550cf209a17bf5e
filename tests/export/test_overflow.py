"""Planted FP16 overflows: plain ONNX Runtime misses them, the guard names block and node and the cure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from PIL import Image

from export.commands.precision_options import policy_from_options, precision_options
from export.parity.forms.fp16_graph import fp16_loader_check
from export.parity.limits import own_limits
from export.precision.calibration import calibration_mosaics
from export.precision.headroom import OverflowReport
from export.precision.overflow import overflow_report
from export.precision.policy import PrecisionPolicy
from export.precision.watching import open_emulation, open_watched_fp32
from runtime.decision import Decision
from runtime.errors import DataError, GateFailedError, SpecError
from runtime.pictures.mosaics import mosaic_from_file
from tests.export.editing import grow_hidden_unit, put_values, write_graphs

BLOCKS = 3


def plant_hidden(model: Any, block: int) -> None:
    """One hidden unit grows, in nodes that are named after the MLP."""
    grow_hidden_unit(model, block)
    for node in model.graph.node:
        head, _, part = node.name.partition("/")
        if part.startswith(("up", "gate", "gelu", "down")):
            node.name = f"{head}/mlp/{part}"


def plant_residual(model: Any, block: int) -> None:
    """One channel of the residual stream leaves FP16's range in a block, each addend being inside it."""
    for k in (block - 1, block):
        put_values(model, f"block_{k}/down.bias", 3, 40000.0)


def guard(folder: Path, model: Any, images: Any, policy: PrecisionPolicy | None = None) -> OverflowReport:
    policy = policy or PrecisionPolicy()
    return overflow_report(*write_graphs(folder, model, policy), images, policy, batch=2, threads=1)


def policies_of(advice: str) -> list[PrecisionPolicy]:
    """Reads the advice as a user would type it: all of it, and what it offers in brackets instead."""
    found = []

    @click.command()
    @precision_options
    def command(fp32_blocks: Any, fp32_layers: Any, min_fp16_share: Any, calibration: Any) -> None:
        found.append(policy_from_options(fp32_blocks, fp32_layers, min_fp16_share))

    for words in re.split(r" \(or |\)$", advice):
        if words:
            command.main(shlex.split(words), standalone_mode=False)
    return found


@pytest.mark.parametrize("block", range(BLOCKS))
def test_guard__names_the_block_whose_hidden_layer_overflows(
    block: int, vit: Callable[..., Any], images: Any, tmp_path: Path
) -> None:
    model = vit(blocks=BLOCKS)
    plant_hidden(model, block)
    report = guard(tmp_path, model, images)
    assert not report.passed
    assert report.first is not None
    assert (report.first.part, report.first.node) == (f"block_{block}", f"block_{block}/mlp/up")
    with pytest.raises(
        GateFailedError, match=rf"first in block_{block}, node block_{block}/mlp/up: found \d+ inf"
    ):
        report.require()
    rows = {part.part: part for part in report.parts}
    assert rows[f"block_{block}"].infinite > 0
    assert rows[f"block_{block}"].headroom < 1
    assert rows[f"block_{block}"].bits < 0
    for before in range(block):
        assert (rows[f"block_{before}"].infinite, rows[f"block_{before}"].nan) == (0, 0)
        assert rows[f"block_{before}"].headroom > 100
    advised = policies_of(report.first.advice)
    assert [policy.fp32_blocks for policy in advised] == [(block,), ()]
    assert advised[1].fp32_layers == (f"block_{block}/mlp/*",)
    cured = guard(tmp_path, model, images, advised[1])
    row = next(part for part in cured.parts if part.part == f"block_{block}")
    # What stays FP32 needs no headroom, and the rest of the block has plenty.
    assert row.headroom > 100
    assert "/mlp/" not in row.node


@pytest.mark.parametrize("plant", [plant_hidden, plant_residual])
def test_guard__plain_onnxruntime_misses_it(
    plant: Callable[[Any, int], None], vit: Callable[..., Any], images: Any, tmp_path: Path
) -> None:
    model = vit(blocks=BLOCKS)
    plant(model, 1)
    fp32, fp16 = write_graphs(tmp_path, model)
    with open_watched_fp32(fp32, threads=1) as session:
        reference = session.run(images)
        assert max(seen.largest for seen in session.seen.values()) > 65520
    loader = fp16_loader_check(fp16, images, reference, decision=Decision(), limits=own_limits("fp16"))
    assert loader.passed, loader.line()
    with open_emulation(fp16, threads=1) as session:
        session.run(images)
        assert session.overflows()[0][0] == "block_1"
    assert not overflow_report(fp32, fp16, images, PrecisionPolicy(), threads=1).passed


@pytest.mark.parametrize("plant", [plant_hidden, plant_residual])
@pytest.mark.parametrize("block", [1, 2])
def test_guard__its_advice_cures(
    plant: Callable[[Any, int], None], block: int, vit: Callable[..., Any], images: Any, tmp_path: Path
) -> None:
    model = vit(blocks=BLOCKS)
    plant(model, block)
    first = guard(tmp_path, model, images).first
    assert first is not None
    advised = policies_of(first.advice)
    assert advised
    for policy in advised:
        report = guard(tmp_path, model, images, policy)
        assert report.passed, (first.advice, report.line())
        assert report.kept_by_user
        assert report.table()[-1] == f"kept FP32 as asked: {report.kept_by_user}"


def test_guard__a_residual_that_no_block_can_hold_in_fp16(
    vit: Callable[..., Any], images: Any, tmp_path: Path
) -> None:
    model = vit(blocks=BLOCKS)
    plant_residual(model, 1)
    first = guard(tmp_path, model, images).first
    assert first is not None
    assert (first.part, first.node) == ("block_1", "block_1/residual_2")
    # Every later block adds to it, and the pooling reads it.
    assert first.advice == "--fp32-blocks 1,2 --fp32-layers 'pool'"
    # Kept FP32 alone, the block gives on what its neighbour cannot take: that edge is found too.
    again = guard(tmp_path, model, images, PrecisionPolicy(fp32_blocks=(1,))).first
    assert again is not None
    assert (again.part, again.node) == ("block_1", "cast/block_1/residual_2:0_fp16")
    assert again.advice == first.advice


def test_guard__advice_covers_who_reads_a_value_and_makes_it_small_again(
    vit: Callable[..., Any], images: Any, tmp_path: Path
) -> None:
    model = vit(blocks=BLOCKS)
    plant_residual(model, 1)
    put_values(model, "block_2/out.bias", 3, -40000.0)
    first = guard(tmp_path, model, images).first
    assert first is not None
    assert first.advice == "--fp32-blocks 1,2"
    assert guard(tmp_path, model, images, PrecisionPolicy(fp32_blocks=(1, 2))).passed


def test_guard__advice_adds_to_what_is_kept_already(
    vit: Callable[..., Any], images: Any, tmp_path: Path
) -> None:
    model = vit(blocks=BLOCKS)
    plant_hidden(model, 2)
    policy = PrecisionPolicy(fp32_blocks=(0,), fp32_layers=("patch/conv",))
    first = guard(tmp_path, model, images, policy).first
    assert first is not None
    for advised in policies_of(first.advice):
        assert 0 in advised.fp32_blocks
        assert "patch/conv" in advised.fp32_layers
        assert guard(tmp_path, model, images, advised).passed


def test_guard__headroom_is_of_the_fp32_activations(
    vit: Callable[..., Any], images: Any, tmp_path: Path
) -> None:
    report = guard(tmp_path, vit(), images, PrecisionPolicy(fp32_blocks=(0,)))
    assert report.passed
    rows = {part.part: part for part in report.parts}
    assert list(rows) == ["preprocess", "patch", "block_0", "block_1", "pool", "projection", "head"]
    with open_watched_fp32(tmp_path / "model.onnx", threads=1) as session:
        session.run(images)
    own = {t.node: session.seen[t.name].largest for t in session.tensors if t.node.startswith("block_1/")}
    assert rows["block_1"].node == max(own, key=own.__getitem__)
    assert rows["block_1"].largest == max(own.values())
    assert rows["block_1"].headroom == 65504 / max(own.values())
    assert 2 ** rows["block_1"].bits == pytest.approx(rows["block_1"].headroom)
    # Kept FP32, but for its last residual, which block 1 takes in FP16.
    assert (rows["block_0"].fp16_tensors, rows["block_0"].node) == (1, "block_0/residual_2")
    assert rows["head"].headroom is None
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["status"] == "passed"
    assert content["kept_by_user"] == "block 0"
    assert [part["part"] for part in content["parts"]] == list(rows)
    assert "head/squeeze" not in report.line()


def test_guard__a_broken_fp32_graph_is_called_so(
    vit: Callable[..., Any], images: Any, tmp_path: Path
) -> None:
    model = vit()
    fp32, fp16 = write_graphs(tmp_path, model)
    put_values(model, "block_1/up.bias", 0, float("inf"))
    onnx.save(model, fp32)
    with pytest.raises(GateFailedError, match=r"FP32 graph itself .* first in node block_1/up_bias"):
        overflow_report(fp32, fp16, images, PrecisionPolicy(), threads=1)


def test_guard__the_graphs_must_belong_together(vit: Callable[..., Any], images: Any, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    _fp32, deeper = write_graphs(tmp_path / "other", vit(blocks=3))
    fp32, _fp16 = write_graphs(tmp_path, vit(blocks=2))
    with pytest.raises(SpecError, match=r"node block_2/ln_1 is not in model\.onnx"):
        overflow_report(fp32, deeper, images, PrecisionPolicy(), threads=1)
    with pytest.raises(SpecError, match="found no mosaics"):
        overflow_report(fp32, deeper, images[:0], PrecisionPolicy(), threads=1)


def test_calibration__is_the_runtimes_mosaic_of_every_picture(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name in ("b.png", "a.png", "deep/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (240, 300, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    mosaics = calibration_mosaics(tmp_path)
    assert mosaics.shape == (3, 224, 224, 3)
    assert mosaics.dtype == np.uint8
    for k, name in enumerate(("a.png", "b.png", "deep/c.jpg")):
        np.testing.assert_array_equal(mosaics[k], mosaic_from_file(tmp_path / name))


def test_calibration__bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        calibration_mosaics(tmp_path / "absent")
    with pytest.raises(DataError, match="found 0 pictures, expected 1 to 1024"):
        calibration_mosaics(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"calibration picture: .*broken\.png"):
        calibration_mosaics(tmp_path)
