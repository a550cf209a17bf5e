"""What inspect found, as lines for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from runtime.names import printable_name

LABEL_WIDTH = 12
_PARTS_SHOWN = 60
_NAMES_SHOWN = 8


def lines_of(facts: dict[str, Any]) -> Iterator[str]:
    """Yields the facts of a bundle, an ONNX file or an engine, each line safe for a terminal."""
    lines = {"bundle": _bundle, "onnx": _onnx, "engine": _engine}[facts["kind"]](facts)
    return (printable_name(line) for line in lines)


def _bundle(facts: dict[str, Any]) -> Iterator[str]:
    contract, decision, steps = facts["contract"], facts["decision"], facts["preprocessing"]
    yield _row("bundle", facts["path"])
    yield _row("digest", facts["digest"])
    yield _row("backbone", facts["backbone"]["name"])
    yield _row("input", _tensor(contract["input"]))
    for tensor in contract["outputs"]:
        yield _row("output", _tensor(tensor))
    yield _row(
        "preprocess",
        f"{steps['decoder']}, {steps['colour']}, {steps['lowest']} + {steps['highest']} patches of "
        f"{steps['patch']} px by entropy, mean {steps['mean']}, std {steps['std']} (in the graph)",
    )
    low, high = decision["uncertain"]
    band = f"uncertain from {low} to {high}" if high > low else "no uncertain band"
    yield _row(
        "decision",
        f"generated from probability {decision['threshold']} on, temperature {decision['temperature']}: "
        f"logit {decision['boundary_logit']:.4f}; {band}",
    )
    if decision["set_by"]:
        yield _row("", f"set on the bundle by {decision['set_by']}")
    yield _row("golden", f"{facts['golden']['file']}, reference {facts['golden']['reference']}")
    for file in facts["files"]:
        state = "" if file["intact"] else f"  DIFFERS, the manifest says {file['listed_sha256'][:16]}"
        yield _row("file", f"{file['name']}: {size_text(file['size'])}, sha256 {file['sha256'][:16]}{state}")
    for engine in facts["engines"]:
        batches = " ".join("-".join(map(str, profile)) for profile in engine["profiles"])
        built_on = f", on {engine['gpu']}" if engine["gpu"] else ""
        yield _row(
            "engine",
            f"{engine['file']}: {engine['backend']} {engine['version']} {engine['precision']}, batch "
            f"{batches}, {' '.join(engine['targets'])}{built_on}{_build_notes(engine)}: {engine['state']}",
        )


def _onnx(facts: dict[str, Any]) -> Iterator[str]:
    yield _row("onnx", facts["path"])
    for file in facts["files"]:
        yield _row("file", f"{file['name']}: {size_text(file['size'])}, sha256 {file['sha256'][:16]}")
    yield from _listing(facts["bundle"])
    opsets = ", ".join(f"{domain} {version}" for domain, version in facts["opsets"].items())
    yield _row("opset", f"{opsets}; IR {facts['ir_version']}; producer {facts['producer'] or 'not stated'}")
    for name, value in facts["metadata"].items():
        yield _row("metadata", f"{name}: {value[:200]}")
    for kind in ("input", "output"):
        for tensor in facts[f"{kind}s"]:
            yield _row(kind, _tensor(tensor))
    contract = facts["contract"]
    yield _row(
        "contract",
        f"followed, embedding {contract['embed_dim']}"
        if contract["follows"]
        else f"not followed: {contract['reason']}",
    )
    if contract["metadata_differs"] is not None:
        wrong = ", ".join(contract["metadata_differs"])
        yield _row("", f"its metadata DIFFERS from it: {wrong}" if wrong else "its metadata says the same")
    if facts["types"]:
        yield _row("types", f"unknown: {facts['types']}")
    yield _row("nodes", f"{facts['nodes']}: {_counts(facts['nodes_by_op'])}")
    for name, entry in facts["weights_by_dtype"].items():
        yield _row("weights", f"{name}: {entry['tensors']} tensors, {size_text(entry['bytes'])}")
    yield from _weighted(facts["weighted"])
    yield _row("layer norms", str(facts["layer_norms"]))
    for found in facts["attention"]:
        exposed = ", its weights are outputs of the graph: not fusable" if found["exposed"] else ""
        yield _row("attention", f"{found['part']}: {found['form']} in {found['precision']}{exposed}")
    if not facts["attention"]:
        yield _row("attention", "none found")
    parts = list(facts["parts"].items())
    for name, entry in parts[:_PARTS_SHOWN]:
        yield _row("part", f"{name}: {entry['nodes']} nodes, {size_text(entry['weight_bytes'])} of weights")
    if len(parts) > _PARTS_SHOWN:
        yield _row("part", f"and {len(parts) - _PARTS_SHOWN} more; --json lists all")


def _weighted(weighted: dict[str, Any]) -> Iterator[str]:
    for op, counts in weighted["by_op"].items():
        yield _row(op.lower(), _counts(counts))
    kept = weighted["kept_fp32"]
    if weighted["fp16_share"] is None:
        return
    yield _row(
        "fp16 share",
        f"{100 * weighted['fp16_share']:.1f} % of MatMul, Gemm and Conv but for {len(kept)} that stay FP32 "
        f"by policy: {_names(kept)}",
    )


def _engine(facts: dict[str, Any]) -> Iterator[str]:
    yield _row("engine", facts["path"])
    yield _row("file", f"{size_text(facts['size'])}, sha256 {facts['sha256']}")
    version = facts["header"]["version"]
    yield _row("header", f"{facts['header']['magic']!r}" + (f", TensorRT-RTX {version}" if version else ""))
    name = facts["name"]
    if name:
        batch = "-".join(map(str, name["profile"]))
        yield _row(
            "name says",
            f"{name['slug']}, {name['precision']}, batch {batch}, {' '.join(name['targets'])}, "
            f"{name['backend']} {name['version']}",
        )
    else:
        yield _row("name says", "nothing: it is not named as build-engine names engines")
    yield from _listing(facts["bundle"])
    fused = facts["fused_attention"]
    said = {True: "found", False: "not found", None: "cannot be told from the bytes of a TensorRT engine"}
    yield _row("attention", f"fused kernels: {said[fused['found']]} {_names(fused['kernels'])}".rstrip())
    opened = facts["opened"]
    if opened["reason"]:
        yield _row("layers", f"not opened: {opened['reason']}")
        return
    for tensor in opened["tensors"]:
        yield _row(tensor["mode"], _tensor(tensor))
    layers = opened["layers"]
    yield _row("layers", f"{layers['layers']}: {_counts(layers['by_precision']) or 'built without details'}")
    yield _row("types", _counts(layers["by_type"]))
    found = layers["fused_attention"]
    yield _row("attention", f"fused layers: {found['count']} {_names(found['layers'])}".rstrip())


def _listing(listing: dict[str, Any] | None) -> Iterator[str]:
    if listing is None:
        return
    if listing["error"]:
        yield _row("bundle", f"{listing['bundle']}: its manifest cannot be used ({listing['error']})")
    elif listing["name"] is None:
        yield _row("bundle", f"{listing['bundle']}: its manifest does not list this file")
    else:
        state = "as the manifest lists it" if listing["intact"] else "DIFFERS from the manifest"
        yield _row("bundle", f"{listing['bundle']}, {listing['name']}: {state}")
    for entry in listing["engines"]:
        yield _row(
            "manifest",
            f"{entry['backend']} {entry['version']} {entry['precision']}, {' '.join(entry['targets'])}, gpu "
            f"{entry['gpu'] or 'none'}, driver {entry['driver'] or 'none'}, verified {entry['verified']}",
        )


def _build_notes(engine: dict[str, Any]) -> str:
    notes = []
    if engine.get("hardware_compatible"):
        notes.append(f"hardware-compatible {engine['hardware_compatible']}")
    if engine.get("version_compatible"):
        notes.append("version-compatible")
    if engine.get("build_seconds") is not None:
        notes.append(f"built in {engine['build_seconds']} s")
    if engine.get("build_peak_bytes") is not None:
        notes.append(f"with {size_text(engine['build_peak_bytes'])} of memory")
    return "".join(f", {note}" for note in notes)


def _row(label: str, text: str) -> str:
    return f"{label:<{LABEL_WIDTH}} {text}"


def _tensor(tensor: dict[str, Any]) -> str:
    return f"{tensor['name']} {tensor['dtype']} [{', '.join(map(str, tensor['shape']))}]"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def size_text(size: int) -> str:
    """Returns a number of bytes as a person reads it."""
    return f"{size / 10**6:.2f} MB" if size >= 10**5 else f"{size} bytes"
