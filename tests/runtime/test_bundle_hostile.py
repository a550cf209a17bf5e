"""Manifests that somebody bent on purpose: whatever they say, the answer is a bundle or one line."""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.bundle.manifest import manifest_digest
from runtime.bundle.opening import open_bundle
from runtime.detector import Detector
from runtime.errors import DgsNetError, ManifestError

SETTINGS = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# What a field may be bent into: each type, and the numbers and texts at which code breaks.
BENT = st.sampled_from(
    [
        None, True, False, 0, 1, -1, 2, 7, 31, 33, 48, 49, 4096, 4097, 2**31, 2**63, 2**64, 10**30,
        0.0, -0.5, 0.5, 1.0, 1e-320, 1e308, "", "x", "..", "/", "model.onnx", "golden.npz", "manifest.json",
        "cpu", "cuda", "sm_87", "tensorrt", "onnxruntime", "fp16", "0" * 64, "\u0000", "\ud7ff", "x" * 5000,
        "\x1b[2J\n", [], [[]], [1], [1, 4, 8], [8, 4, 1], [0, 0, 0], [[1, 1, 1], [1, 8, 32]], {},
        {"file": "model.onnx"}, {"": ""},
    ]
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*path, key))


def bend(content: dict[str, Any], where: int, how: str, value: Any) -> None:
    """Changes one place of a manifest: another value, one key less, one key more, or an item twice."""
    everywhere = [place for place in places(content) if place and place[0] != "digest"]
    *parents, last = everywhere[where % len(everywhere)]
    target: Any = content
    for key in parents:
        target = target[key]
    if how == "delete":
        del target[last]
    elif how == "add":
        target |= {"surplus": value} if isinstance(target, dict) else {}
    elif how == "twice" and isinstance(target, list):
        target.append(copy.deepcopy(target[last]))
    else:
        target[last] = value


def write(folder: Path, content: dict[str, Any]) -> None:
    content["digest"] = manifest_digest(content)
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8", errors="surrogatepass")


BENDS = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(["set", "set", "set", "delete", "add", "twice"]), BENT),
    min_size=1,
    max_size=3,
)


def bent(content: dict[str, Any], bends: list[tuple[int, str, Any]]) -> dict[str, Any]:
    result = copy.deepcopy(content)
    for where, how, value in bends:
        # A bent list may have taken the place of what held the next one.
        try:
            bend(result, where, how, copy.deepcopy(value))
        except (TypeError, AttributeError):
            continue
    return result


@SETTINGS
@given(bends=BENDS)
def test_open__of_a_bent_manifest_is_a_detector_or_one_line(bundle: Path, bends: list[Any]) -> None:
    original = (bundle / "manifest.json").read_bytes()
    try:
        write(bundle, bent(json.loads(original), bends))
        message = ""
        try:
            Detector.open(bundle).close()
        except DgsNetError as err:
            message = str(err)
        assert message.isprintable()
        assert len(message) < 2000
    finally:
        (bundle / "manifest.json").write_bytes(original)


def test_fuzz__reaches_both_outcomes(bundle: Path) -> None:
    """The fuzz above proves nothing if every bend is refused, or none."""
    content = json.loads((bundle / "manifest.json").read_text())
    opened = refused = 0
    for where in range(len(list(places(content)))):
        for value in (None, 0.5, "x"):
            write(bundle, bent(content, [(where, "set", value)]))
            try:
                open_bundle(bundle, verify="off").close()
                opened += 1
            except ManifestError:
                refused += 1
    assert opened > 5
    assert refused > 100


def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        target: Any = content
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = to

    return apply


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (change("preprocessing", "patch", to=16), "preprocessing.patch: found 16, this version can do 32"),
        (change("preprocessing", "lowest", to=25), "preprocessing.lowest"),
        (change("preprocessing", "highest", to=10**9), "preprocessing.highest"),
        (change("preprocessing", "permutation", 0, to=1), "each of 0..48 exactly once"),
        (change("preprocessing", "permutation", 0, to=True), "each of 0..48 exactly once"),
        (change("preprocessing", "permutation", to=[]), "each of 0..48 exactly once"),
        (change("preprocessing", "std", 0, to=0), "numbers above 0"),
        (change("preprocessing", "decoder", to="libjpeg"), "preprocessing.decoder"),
        (change("engines", 0, "profiles", to=[]), "1 to 16 profiles"),
        (change("engines", 0, "profiles", to=[[1, 1, 1]] * 17), "1 to 16 profiles"),
        (change("engines", 0, "profiles", 0, to=[0, 1, 2]), "1 <= min <= opt <= max <= 4096"),
        (change("engines", 0, "profiles", 0, to=[2, 1, 4]), "1 <= min <= opt <= max <= 4096"),
        (change("engines", 0, "profiles", 0, to=[1, 1, 10**9]), "1 <= min <= opt <= max <= 4096"),
        (change("engines", 0, "profiles", 0, to=[1, 1, 2.0]), "1 <= min <= opt <= max <= 4096"),
        (change("engines", 0, "file", to="../../lib.so"), "leaves the bundle"),
        (change("engines", 0, "file", to="other.onnx"), "not listed in files"),
        (change("engines", 0, "backend", to="exec"), "engines.model.onnx.backend: found 'exec'"),
        (change("engines", 0, "targets", to=[]), "at least one target"),
        (change("engines", 0, "targets", to="cpu"), "model.onnx.targets: found 'cpu', expected a list"),
        (change("engines", 0, "profiles", to={}), "model.onnx.profiles: found {}, expected a list"),
        (change("engines", to={}), "engines: found dict, expected a list"),
        (change("golden", "count", to=True), "golden.count: found True"),
        (change("golden", "count", to=0), "golden.count: found 0"),
        (change("files", "model.onnx", "note", to=1), "expected sha256 and size"),
        (change("golden", "file", to="/etc/passwd"), "leaves the bundle"),
        (change("decision", "threshold", to=1), "threshold"),
        (change("decision", "threshold", to="0.5"), "expected numbers"),
        (change("graph", "outputs", 1, "shape", 1, to=10**9), "embedding width 1000000000"),
        (change("graph", "input", "dtype", to="float32"), "differ from the contract"),
        (change("classes", to=["generated", "real"]), "classes: found"),
        (change("tolerances", "fp32_max_abs_logit", to=-1), "tolerances.fp32_max_abs_logit"),
        (change("files", "model.onnx", "sha256", to="A" * 64), "lower-case hex"),
        (change("files", "model.onnx", "size", to=-1), "a number of bytes"),
    ],
)  # fmt: skip
def test_open__names_the_field_that_is_out_of_range(
    bundle: Path, apply: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    apply(content)
    write(bundle, content)
    with pytest.raises(ManifestError) as caught:
        open_bundle(bundle)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_open__verifies_engines_that_it_does_not_use(
    tmp_path: Path, write_tiny_bundle: Callable[..., Path], engine_entry: Callable[..., Any]
) -> None:
    engine = "engines/x_fp16_b1-4-8_sm87_trt10.3.0.26.engine"
    engines = [
        engine_entry("model.onnx", "onnxruntime"),
        engine_entry(
            engine, "tensorrt", precision="fp16", targets=["sm_87"], version="10.3.0.26", gpu="Orin"
        ),
    ]
    folder = write_tiny_bundle(tmp_path / "two", engines=engines)
    Detector.open(folder).close()
    content = bytearray((folder / engine).read_bytes())
    content[3] ^= 1
    (folder / engine).write_bytes(content)
    with pytest.raises(ManifestError, match=r"\.engine.*changed or damaged"):
        Detector.open(folder)
    (folder / engine).unlink()
    with pytest.raises(ManifestError, match=r"\.engine is missing"):
        Detector.open(folder)


def test_open__a_name_that_is_not_utf8_is_shown_on_one_line(bundle: Path) -> None:
    (bundle / os.fsdecode(b"caf\xe9\n.bin")).write_bytes(b"x")
    with pytest.raises(ManifestError, match=r"caf\ufffd\\n\.bin is not listed"):
        open_bundle(bundle)


def test_open__refuses_special_files_wherever_they_are(bundle: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "model.onnx", "extra"):
        folder = shutil.copytree(bundle, tmp_path / name)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        with pytest.raises(ManifestError, match="link or special file"):
            open_bundle(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        folder = shutil.copytree(bundle, tmp_path / "s")
        os.chdir(folder)
        listener.bind("socket")
        with pytest.raises(ManifestError, match="socket is a link or special file"):
            open_bundle(folder)


def test_open__control_characters_of_a_manifest_reach_no_terminal(bundle: Path) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    write(bundle, content | {"\x1b[2J\n": 1})
    with pytest.raises(ManifestError) as caught:
        open_bundle(bundle)
    assert "unknown keys: \\x1b[2J\\n" in str(caught.value)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud800"], ids=["nul", "long", "surrogate"])
def test_open__of_an_impossible_path_is_one_line(name: str) -> None:
    with pytest.raises(ManifestError) as caught:
        Detector.open(name)
    assert "\n" not in str(caught.value)


def test_open__a_link_that_takes_a_files_place_after_the_listing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing and the hashing somebody puts a link to other content there."""
    from runtime.bundle import opening as module

    real = module._check_listing

    def check(folder: Path, manifest: Any) -> None:
        real(folder, manifest)
        (folder / "model.onnx").rename(tmp_path / "outside")
        (folder / "model.onnx").symlink_to(tmp_path / "outside")

    monkeypatch.setattr(module, "_check_listing", check)
    with pytest.raises(ManifestError, match=r"model\.onnx: cannot be read"):
        open_bundle(bundle).join()
