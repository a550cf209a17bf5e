"""Faults of other kinds: which form is blamed, what is proposed, and what a refusal leaves behind."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from export.build import BundleOptions, build_bundle
from export.bundle.lock import bundle_lock
from export.cli import cli
from export.commands.bisect_options import located
from export.engine.options import BuildOptions
from export.parity.bisect import run as run_module
from export.parity.bisect.faults import part_in
from export.parity.bisect.findings import FILE, FOUND, NOT_SEARCHED, PASSES, BisectReport, Broken, Proposal
from export.parity.bisect.repair import RepairOptions, repair_bundle
from export.parity.bisect.run import BisectOptions, bisect_bundle
from export.parity.forms.form import FP16, ONNX_FP32
from export.parity.gate import bundle_gate
from export.precision.policy import PrecisionPolicy
from runtime.bundle.manifest import MODEL_FP16_NAME
from runtime.errors import DataError, GateFailedError, UsageError
from tests.export.editing import (
    edit_graph,
    grow_hidden_unit,
    put_values,
    reseal,
    scale_values,
)
from tests.export.vit_graph import vit_model

BLOCKS = 2
ENGINE = BuildOptions(profiles=((1, 1, 2),))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle made of an ONNX file, so that no checkpoint is there to compare it with."""
    folder = tmp_path_factory.mktemp("sound")
    onnx.save(vit_model(blocks=BLOCKS), folder / "source.onnx")
    build_bundle(folder / "source.onnx", folder / "bundle", BundleOptions(engine=ENGINE))
    return folder / "bundle"


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with one block in which FP16 overflows."""
    return built_with_overflow(tmp_path_factory.mktemp("overflowing"), (1,), PrecisionPolicy())


@pytest.fixture
def broken(overflowing: Path, tmp_path: Path) -> Path:
    return shutil.copytree(overflowing, tmp_path / "broken")


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "bundle")


def bisected(bundle: Path, limits: dict[str, Any] | None = None, *, pictures: int = 4) -> BisectReport:
    report = bundle_gate(bundle, None, None, limits=limits)
    return bisect_bundle(bundle, None, report, options=BisectOptions(pictures=pictures))


def built_with_overflow(folder: Path, blocks: tuple[int, ...], policy: PrecisionPolicy) -> Path:
    """Builds a bundle whose FP16 graph overflows in these blocks, which is said in it."""
    model = vit_model(blocks=BLOCKS)
    for block in blocks:
        grow_hidden_unit(model, block)
    onnx.save(model, folder / "source.onnx")
    options = BundleOptions(engine=dataclasses.replace(ENGINE, policy=policy), allow_failed=True)
    build_bundle(folder / "source.onnx", folder / "bundle", options)
    return folder / "bundle"


def freeze(model: Any) -> None:
    put_values(model, "block_1.split", 0, 4)


def turn_a_sign(model: Any) -> None:
    scale_values(model, "block_1/up.weight_fp16", np.s_[0, 0], -1)


def break_a_node(model: Any) -> None:
    next(node for node in model.graph.node if node.name == "block_1/up").op_type = "NoSuchOperator"


def test_bisect__blames_the_fp32_graph_that_does_not_run(bundle: Path) -> None:
    """Nothing but FP16 is there to be compared, and yet it is not FP16 that is broken."""
    edit_graph(bundle, freeze)
    report = bisected(bundle)
    assert report.first == (ONNX_FP32, "block_1")
    assert [hop.hop for hop in report.hops if isinstance(hop, Broken) and hop.part] == [ONNX_FP32]


@pytest.mark.filterwarnings("error")
def test_bisect__blames_the_fp32_graph_that_gives_nan(bundle: Path) -> None:
    edit_graph(bundle, lambda m: put_values(m, "block_1/up.bias", 3, np.nan))
    report = bisected(bundle)
    assert report.first == (ONNX_FP32, "block_1")
    assert "block_1 of onnx-fp32, which gives infinity or NaN itself" in "\n".join(report.lines())
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("edit", "part"), [(freeze, "block_1"), (turn_a_sign, "block_1"), (break_a_node, "block_1")]
)
def test_bisect__sees_a_fault_of_the_file_that_no_value_shows(
    edit: Callable[[Any], None], part: str, bundle: Path
) -> None:
    """A batch frozen at the size that is looked at, a sign of one weight, a graph that cannot be opened."""
    edit_graph(bundle, edit, MODEL_FP16_NAME)
    report = bisected(bundle)
    assert report.first == (FP16, part)
    assert (report.proposal.status, report.proposal.blocks) == (FILE, ())
    assert report.proposal.is_repair


def test_bisect__sees_a_file_that_is_no_graph(bundle: Path) -> None:
    (bundle / MODEL_FP16_NAME).write_bytes(b"not a graph")
    reseal(bundle)
    report = bisected(bundle)
    assert report.first is None
    assert "the parts of fp16-emulated could not be compared" in report.verdict()
    assert [check.status for check in report.checks()] == ["skipped"]
    assert report.proposal.status == FILE


def test_bisect__searches_where_the_policy_keeps_the_rest_fp32(tmp_path: Path) -> None:
    """With every block FP32 too nothing would be left to be FP16, which no conversion writes."""
    bundle = built_with_overflow(tmp_path, (1,), PrecisionPolicy(fp32_layers=("patch/*",)))
    proposal = bisected(bundle).proposal
    assert (proposal.status, proposal.blocks) == (FOUND, (1,))
    assert proposal.is_minimal


@pytest.mark.slow
def test_bisect__starts_from_a_policy_that_keeps_the_wrong_block(tmp_path: Path) -> None:
    bundle = built_with_overflow(tmp_path, (0,), PrecisionPolicy(fp32_blocks=(1,)))
    proposal = bisected(bundle).proposal
    assert (proposal.status, proposal.blocks) == (FOUND, (0,))
    assert proposal.is_minimal


def test_bisect__leaves_the_bound_of_all_pictures_to_all_pictures(overflowing: Path) -> None:
    """None in 16 is at most 17 %, but none in the 5 that are looked at would be 45 %."""
    proposal = bisected(overflowing, {"max_flip_bound": 0.3}, pictures=5).proposal
    assert (proposal.status, proposal.blocks) == (FOUND, (1,))


def test_bisect__says_that_only_all_pictures_fail(bundle: Path) -> None:
    proposal = bisected(bundle, {"max_flip_bound": 0.01}, pictures=5).proposal
    assert proposal.status == NOT_SEARCHED
    assert "passes on 5 pictures and fails the gate on all 16 " in proposal.reason
    assert "--bisect-pictures 16" in proposal.reason


def test_bisect__says_that_what_failed_is_elsewhere(bundle: Path) -> None:
    """An engine is behind both graphs."""
    report = bundle_gate(bundle, None, None)
    failed = next(check for check in report.checks if check.hop.startswith("engine onnxruntime:cpu"))
    object.__setattr__(failed, "status", "failed")
    found = bisect_bundle(bundle, None, report, options=BisectOptions(pictures=4))
    assert found.proposal.status == PASSES
    assert "what failed is engine onnxruntime:cpu, which no block repairs" in found.proposal.reason
    assert found.verdict() == (
        "bisect: no part of the graphs is at fault; the chain breaks at engine onnxruntime:cpu"
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Name:'block_12/mlp/fc/matmul' Status", "block_12"),
        ("first in node cast/block_3/mlp/residual_fp16", "block_3"),
        ("weight stem/conv/weight is", "patch_embedding"),
        ("weight stem/tokens is", "stem"),
        ("/data/head/bundle/model.onnx: cannot be read", ""),
        ("model.onnx: cannot be read", ""),
    ],
)
def test_part_in__reads_nodes_and_no_paths(text: str, part: str) -> None:
    assert part_in(text) == part


def test_repair__makes_a_wrong_file_again(bundle: Path) -> None:
    edit_graph(bundle, turn_a_sign, MODEL_FP16_NAME)
    report = bundle_gate(bundle, None, None)
    assert not report.passed
    proposal = Proposal(FILE, "as the test says", (), (), ())
    after, trade_off = repair_bundle(bundle, None, None, report, proposal, RepairOptions())
    assert after.passed
    assert trade_off.lines()[0] == (
        "repaired: the FP16 graph was made again by the same policy, no block in FP32"
    )
    assert bundle_gate(bundle, None, None).passed


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file of this process may grow beyond ``size`` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_repair__leaves_the_bundle_when_the_disk_is_full(broken: Path, tmp_path: Path) -> None:
    report = bundle_gate(broken, None, None)
    proposal = Proposal(FOUND, "as the test says", (1,), (), ())
    kept = {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()}
    with small_files(300_000), pytest.raises(UsageError, match=r"is left as it was.*free space"):
        repair_bundle(broken, None, None, report, proposal, RepairOptions())
    with small_files(300_000), pytest.raises(UsageError, match="a graph to be tried cannot be written"):
        bisect_bundle(broken, None, report, options=BisectOptions(scratch=tmp_path))
    assert {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()} == kept
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_located__refuses_a_repair_before_the_search(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = bundle_gate(broken, None, None)
    monkeypatch.setattr(run_module, "bisect_bundle", lambda *_words, **_options: pytest.fail("searched"))
    with bundle_lock(broken), pytest.raises(UsageError, match="is writing this bundle now"):
        located(
            broken, None, report, bisect=False, repair=True, drop_engines=False,
            bisect_pictures=16, bisect_evaluations=8,
        )  # fmt: skip


def test_parity__shows_the_gate_though_the_search_ends_early(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanished(*_words: Any, **_options: Any) -> BisectReport:
        raise DataError("a.png: gone")

    monkeypatch.setattr(run_module, "bisect_bundle", vanished)
    done = CliRunner().invoke(cli, ["parity", str(bundle), "--bisect"])
    assert isinstance(done.exception, DataError)
    assert "STOPPED: " in done.output
    assert " 0 failed" in done.output


def test_parity__writes_what_it_found_everywhere(broken: Path, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "html", "junit")}
    words = [word for kind, path in files.items() for word in (f"--{kind}-file", str(path))]
    found = CliRunner().invoke(cli, ["parity", str(broken), "--bisect", "--bisect-pictures", "4", *words])
    assert isinstance(found.exception, GateFailedError)
    content = json.loads(files["json"].read_text())
    assert content["bisect"]["first"] == {"hop": FP16, "part": "block_1"}
    cases = ET.parse(files["junit"]).getroot().iter("testcase")
    [case] = [case for case in cases if case.get("name") == "part by part"]
    assert case.get("classname") == "parity.fp16-emulated"
    assert "first at fault block_1" in case.find("failure").get("message")  # type: ignore[union-attr]
    page = files["html"].read_text()
    assert "Where it breaks" in page
    assert "--fp32-blocks 1" in page


@pytest.mark.slow
def test_parity__writes_what_it_repaired_everywhere(broken: Path, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "html", "junit")}
    words = [word for kind, path in files.items() for word in (f"--{kind}-file", str(path))]
    done = CliRunner().invoke(cli, ["parity", str(broken), "--repair", *words], catch_exceptions=False)
    assert done.output.index("before the repair:") < done.output.index("the repaired bundle:")
    assert json.loads(files["json"].read_text())["repair"]["status"] == "repaired"
    page = files["html"].read_text()
    assert "before the repair:" in page
    assert "Drift by block" not in page  # those bars were the broken graph's
    assert "part by part" not in files["junit"].read_text()


def test_parity__says_why_nothing_was_repaired(bundle: Path, tmp_path: Path) -> None:
    edit_graph(bundle, lambda m: scale_values(m, "head.weight", np.s_[:], -1.0))
    path = tmp_path / "report.json"
    done = CliRunner().invoke(cli, ["parity", str(bundle), "--repair", "--json-file", str(path)])
    assert isinstance(done.exception, GateFailedError)
    said = json.loads(path.read_text())["repair"]
    assert said["status"] == "not-repaired"
    assert "the chain breaks before FP16" in said["reason"]


def test_parity__refuses_contradictory_options_at_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "export.parity.gate.bundle_gate", lambda *_words, **_options: pytest.fail("ran the gate")
    )
    done = CliRunner().invoke(cli, ["parity", str(bundle), "--drop-engines"])
    assert isinstance(done.exception, UsageError)
