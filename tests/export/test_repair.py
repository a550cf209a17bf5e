"""--repair: what is rebuilt, what is kept, and that nothing is written unless it passes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

from export.build import BundleOptions, build_bundle
from export.commands.bisect_options import bisect_options, located, repaired
from export.engine.options import BuildOptions
from export.parity.bisect import repair as repair_module
from export.parity.bisect.findings import FOUND, NOT_FP16, Proposal
from export.parity.bisect.latency import side_by_side
from export.parity.bisect.rebuild import build_options, with_policy
from export.parity.bisect.repair import RepairOptions, repair_bundle
from export.parity.bisect.run import bisect_bundle
from export.parity.forms.form import Computed
from export.parity.gate import GateOptions, bundle_gate
from export.precision.conversion import fp16_from_fp32
from export.precision.policy import PrecisionPolicy, policy_of_bundle
from runtime.bundle.manifest import manifest_bytes
from runtime.bundle.opening import open_bundle
from runtime.errors import GateFailedError, MissingDependencyError, ParityError, UsageError

ENGINE_OPTIONS = BuildOptions(profiles=((1, 2, 4),), targets=("sm_86", "sm_89"))
FACTOR, BACK = "block_1/mlp/1024", "block_1/mlp/2^-20"


@pytest.fixture(scope="module")
def broken(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a TensorRT-RTX engine, in block 1 of which a hidden layer overflows FP16."""
    bundle = tmp_path_factory.mktemp("broken") / "bundle"
    backends = ("onnxruntime", "tensorrt-rtx")
    build_bundle(run_folder, bundle, BundleOptions(backends=backends, engine=ENGINE_OPTIONS))
    model = onnx.load(bundle / "model.onnx")
    half = next(n for n in model.graph.node if n.name == "block_1/mlp/act/half")
    inner, half.output[0] = half.output[0], "small"
    numbers = ((FACTOR, 2.0**10), (BACK, 2.0**-20))
    model.graph.initializer.extend([numpy_helper.from_array(np.float32(v), n) for n, v in numbers])
    added = [
        helper.make_node("Mul", [a, b], [c], name=f"block_1/mlp/{c}_node")
        for a, b, c in (("small", FACTOR, "mid"), ("mid", FACTOR, "large"))
    ]
    added.append(helper.make_node("Mul", ["large", BACK], [inner], name="block_1/mlp/back"))
    nodes = list(model.graph.node)
    place = nodes.index(half) + 1
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *added, *nodes[place:]])
    onnx.save(model, bundle / "model.onnx")
    fp16_from_fp32(bundle / "model.onnx", bundle / "model_fp16.onnx", PrecisionPolicy())
    reseal(bundle)
    return bundle


@pytest.fixture
def bundle(broken: Path, tmp_path: Path) -> Path:
    return shutil.copytree(broken, tmp_path / "bundle")


def reseal(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (bundle / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (bundle / "manifest.json").write_bytes(manifest_bytes(manifest))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below the bundle's parent, by name: what a failed repair must leave as it was."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def proposal(blocks: tuple[int, ...], status: str = FOUND) -> Proposal:
    return Proposal(status, "as the test says", blocks, (), ())


def test_repair__rebuilds_graph_and_engines_and_passes(bundle: Path, data_set: Path) -> None:
    before = bundle_gate(bundle, None, data_set / "test")
    assert not before.passed
    found = bisect_bundle(bundle, None, before)
    assert found.proposal.blocks == (1,)
    with open_bundle(bundle) as opened:
        old = opened.manifest
    after, trade_off = repair_bundle(bundle, None, data_set / "test", before, found.proposal, RepairOptions())
    assert after.passed
    with open_bundle(bundle, verify="full") as opened:
        opened.join()
        new = opened.manifest
    assert policy_of_bundle(new.raw["provenance"]).fp32_blocks == (1,)
    assert policy_of_bundle(old.raw["provenance"]).fp32_blocks == ()
    assert new.files["model.onnx"] == old.files["model.onnx"]
    assert new.files[new.golden_file] == old.files[old.golden_file]
    assert new.files["model_fp16.onnx"] != old.files["model_fp16.onnx"]
    engine = next(entry for entry in new.engines if entry.backend == "tensorrt-rtx")
    was = next(entry for entry in old.engines if entry.backend == "tensorrt-rtx")
    kept = ("file", "profiles", "targets", "version", "precision", "verified")
    assert {k: getattr(engine, k) for k in kept} == {k: getattr(was, k) for k in kept}
    assert new.files[engine.file].sha256 != old.files[was.file].sha256
    on_cpu = next(entry for entry in new.engines if entry.targets == ("cpu",))
    assert on_cpu.verified == "passed"
    # The repair is in the graph: it is no longer the one that overflows, and it passes the gate again.
    assert bundle_gate(bundle, None, data_set / "test").passed
    report = json.loads((bundle / "parity" / "parity.json").read_text())
    assert report["status"] == "passed"
    assert report["count"] == 16  # the bundle's own mosaics, not the caller's pictures

    assert trade_off.blocks == ((), (1,))
    assert trade_off.graph_bytes[1] > trade_off.graph_bytes[0]
    assert trade_off.hops[0].nonfinite > 0
    assert trade_off.hops[1].nonfinite == 0
    assert trade_off.digest == new.digest
    change = trade_off.engines[0]
    assert (change.bytes_before, change.bytes_after) == (
        old.files[was.file].size,
        new.files[engine.file].size,
    )
    assert change.latency.before_ms is None
    assert "latency not run (" in change.line()  # there is no GPU: no figure is made up
    json.dumps(trade_off.to_json(), allow_nan=False)
    assert sorted(p.name for p in bundle.parent.iterdir()) == ["bundle"]


def test_repair__writes_nothing_when_the_repaired_bundle_fails(bundle: Path) -> None:
    before = bundle_gate(bundle, None, None)
    kept = snapshot(bundle.parent)
    with pytest.raises(ParityError, match="nothing is written, the repaired bundle fails too"):
        repair_bundle(bundle, None, None, before, proposal((0, 3)), RepairOptions())
    assert snapshot(bundle.parent) == kept


def test_repair__writes_nothing_without_a_set(bundle: Path) -> None:
    before = bundle_gate(bundle, None, None)
    kept = snapshot(bundle.parent)
    with pytest.raises(GateFailedError, match="nothing is written: as the test says"):
        repair_bundle(bundle, None, None, before, proposal((), NOT_FP16), RepairOptions())
    assert snapshot(bundle.parent) == kept


@pytest.mark.slow
def test_repair__writes_nothing_when_the_bundle_changes_meanwhile(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody replaces the bundle while the candidate is being judged."""
    before = bundle_gate(bundle, None, None)
    right = repair_module.bundle_gate

    def slow(*words: Any, **options: Any) -> Any:
        report = right(*words, **options)
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["provenance"]["command"] = ["other"]
        (bundle / "manifest.json").write_bytes(manifest_bytes(manifest))
        return report

    monkeypatch.setattr(repair_module, "bundle_gate", slow)
    with pytest.raises(UsageError, match="was changed while its repair was judged"):
        repair_bundle(bundle, None, None, before, proposal((1,)), RepairOptions())
    with open_bundle(bundle, verify="full") as opened:
        opened.join()
        assert opened.manifest.raw["provenance"]["command"] == ["other"]
    assert sorted(p.name for p in bundle.parent.iterdir()) == ["bundle"]


def test_repair__refuses_engines_that_it_cannot_build_or_drops_them(bundle: Path) -> None:
    """An engine of TensorRT proper needs the GPU that it is for."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    entry = next(e for e in manifest["engines"] if e["backend"] == "tensorrt-rtx")
    entry |= {"backend": "tensorrt", "targets": ["sm_87"], "version": "10.3.0.26", "gpu": "Orin"}
    (bundle / "manifest.json").write_bytes(manifest_bytes(manifest))
    before = bundle_gate(bundle, None, None)
    kept = snapshot(bundle.parent)
    with pytest.raises(MissingDependencyError, match="--drop-engines"):
        repair_bundle(bundle, None, None, before, proposal((1,)), RepairOptions())
    assert snapshot(bundle.parent) == kept
    _after, trade_off = repair_bundle(
        bundle, None, None, before, proposal((1,)), RepairOptions(drop_engines=True)
    )
    assert "dropped; build it again" in trade_off.engines[0].line()
    with open_bundle(bundle, verify="full") as opened:
        opened.join()
        assert {e.backend for e in opened.manifest.engines} == {"onnxruntime"}
        assert entry["file"] not in opened.manifest.files


def test_repair__asks_for_the_same_engine(broken: Path) -> None:
    with open_bundle(broken) as opened:
        entry = next(e for e in opened.manifest.engines if e.backend == "tensorrt-rtx")
    policy = PrecisionPolicy(fp32_blocks=(2,))
    options = build_options(entry, policy)
    assert options.engine_profiles == entry.profiles
    assert (options.targets, options.policy) == (entry.targets, policy)
    single = build_options(dataclasses.replace(entry, profiles=((1, 4, 8),)), policy)
    assert single.engine_profiles == ((1, 4, 8),)


def test_policy__is_read_from_a_manifest_and_written_to_it(broken: Path, tmp_path: Path) -> None:
    policy = PrecisionPolicy(fp32_blocks=(0, 2), fp32_layers=("stem/conv",))
    report = fp16_from_fp32(broken / "model.onnx", tmp_path / "half.onnx", policy)
    manifest = json.loads((broken / "manifest.json").read_text())
    changed = with_policy(manifest, report)
    assert policy_of_bundle(changed["provenance"]) == policy
    manifest_bytes(changed)  # which refuses what no runtime could open


def test_side_by_side__times_both_in_turns() -> None:
    calls: list[str] = []
    spent = {"short": 0.001, "long": 0.02}

    def form(name: str) -> Computed:
        def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            import time

            calls.append(name)
            time.sleep(spent[name])
            return np.zeros(len(images), np.float32), np.zeros((len(images), 2), np.float32)

        return Computed(name, run)

    found = side_by_side(form("short"), form("long"), np.zeros((2, 224, 224, 3), np.uint8), rounds=4)
    assert calls[:4] == ["short", "long", "long", "short"]
    assert found.before_ms is not None
    assert found.after_ms is not None
    assert found.after_ms > 2 * found.before_ms
    assert (found.batch, found.where) == (2, "long")
    assert "side by side" in found.line()


@pytest.fixture
def command() -> click.Command:
    """A command wired as parity is."""

    @click.command()
    @click.argument("bundle", type=click.Path(path_type=Path))
    @bisect_options
    def parity(bundle: Path, **asked: Any) -> None:
        report = bundle_gate(bundle, None, None)
        found = located(bundle, None, report, **asked)
        if found is None:
            click.echo("only the gate")
            return
        for line in found.lines():
            click.echo(line)
        if asked["repair"]:
            done = repaired(
                bundle, None, None, report, found, limits={}, options=GateOptions(),
                drop_engines=asked["drop_engines"],
            )  # fmt: skip
            for line in done[1].lines() if done is not None else ["nothing to repair"]:
                click.echo(line)

    return parity


@pytest.mark.slow
def test_options__bisect_and_repair_a_bundle(bundle: Path, command: click.Command) -> None:
    run = CliRunner()
    done = run.invoke(command, [str(bundle), "--repair"], catch_exceptions=False)
    assert "first at fault block_1" in done.output
    assert "repaired: no block in FP32 -> block 1 in FP32" in done.output
    again = run.invoke(command, [str(bundle), "--repair"], catch_exceptions=False)
    assert "nothing to repair" in again.output
    assert "only the gate" in run.invoke(command, [str(bundle)], catch_exceptions=False).output
    with pytest.raises(UsageError, match="without --repair"):
        run.invoke(command, [str(bundle), "--drop-engines"], catch_exceptions=False)
