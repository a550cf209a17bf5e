"""Whatever the bytes of a manifest, the answer is a result or one line of an error of ours."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.bundle.manifest import graph_json, manifest_bytes, manifest_digest, parse_manifest
from runtime.decision import Decision
from runtime.errors import ManifestError
from runtime.spec import Preprocessing

QUICK = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def content() -> dict[str, Any]:
    entry = {"sha256": "0" * 64, "size": 1}
    return {
        "schema": 1,
        "graph": graph_json(4, 18),
        "preprocessing": Preprocessing().to_json(),
        "backbone": {"name": "tiny"},
        "classes": ["real", "generated"],
        "decision": Decision().to_json(),
        "tolerances": {"fp32_max_abs_logit": 1e-3},
        "golden": {"file": "golden.npz", "reference": "onnx-fp32"},
        "files": {"model.onnx": entry, "golden.npz": entry},
        "provenance": {},
        "engines": [
            {
                "file": "model.onnx", "backend": "onnxruntime", "precision": "fp32", "profiles": [[1, 4, 8]],
                "targets": ["cpu"], "version": "1", "gpu": None, "driver": None, "verified": "passed",
            }
        ],
    }  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *(place for key in keys for place in places(value[key], (*path, key)))]


def parse(encoded: bytes) -> None:
    message = ""
    try:
        parse_manifest(encoded)
    except ManifestError as err:
        message = str(err)
    assert "\n" not in message


def test_parse_manifest__accepts_what_the_fuzz_starts_from() -> None:
    assert parse_manifest(manifest_bytes(content())).embed_dim == 4


@QUICK
@given(st.binary(max_size=200))
def test_parse_manifest__survives_any_bytes(encoded: bytes) -> None:
    parse(encoded)


@QUICK
@given(place=st.sampled_from(places(content())[1:]), value=JSON)
def test_parse_manifest__survives_any_value_anywhere(place: tuple[Any, ...], value: Any) -> None:
    changed = content()
    target: Any = changed
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    try:
        changed["digest"] = manifest_digest(changed)
    except ValueError:  # NaN has no canonical form; the text below still carries it
        changed["digest"] = "0" * 64
    parse(json.dumps(changed).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("1.0", "1e400"),
        ("1.0", "1" + "0" * 400),
        ("1.0", "1" + "0" * 5000),
        ("1.0", "[" * 400 + "]" * 400),
        ('"golden.npz"', '"\\ud800"'),
        ('"backbone": {"name": "tiny"}', '"backbone": {"a": 1, "a": 2}'),
    ],
    ids=["infinity", "huge integer", "too many digits", "deep", "surrogate", "twice"],
)
def test_parse_manifest__refuses_json_that_python_reads_but_cannot_use(place: str, value: str) -> None:
    text = json.dumps(content() | {"digest": "0" * 64}).replace(place, value)
    assert value in text
    # A matching digest where there can be one, so that the value itself is reached.
    with contextlib.suppress(ValueError):
        changed = json.loads(text)
        text = text.replace("0" * 64 + '"}', manifest_digest(changed) + '"}')
    with pytest.raises(ManifestError):
        parse_manifest(text.encode())
