"""``inspect --html``: one page that holds everything it needs, with blocks and bytes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from export.commands.inspect import inspect_command
from export.inspect.onnx_graph import onnx_facts
from export.inspect.page import page_from_facts
from runtime.errors import UsageError

VOID = {"meta"}


class Page(HTMLParser):
    """Reads a page: its text, the widths of its bars, and whether every tag is closed in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def bars(self) -> list[float]:
        styles = [attributes.get("style") or "" for tag, attributes in self.tags if tag == "div"]
        return [float(match[1]) for style in styles if (match := re.fullmatch(r"width:([\d.]+)%", style))]


def page_of(path: Path, target: Path) -> Page:
    done = CliRunner().invoke(inspect_command, [str(path), "--html", str(target)], catch_exceptions=False)
    assert done.exit_code == 0
    return Page(target.read_text(encoding="utf-8"))


def needs_nothing(page: Page) -> bool:
    """Whether nothing on the page is loaded from anywhere or run."""
    loading = [
        name for _tag, attributes in page.tags for name in attributes if name in ("src", "href", "srcset")
    ]
    scripts = [tag for tag, _attributes in page.tags if tag in ("script", "link", "iframe", "img", "object")]
    return not loading and not scripts


def test_page__of_an_onnx_file_draws_each_part_by_its_bytes(fp32_onnx: Path, tmp_path: Path) -> None:
    page = page_of(fp32_onnx, tmp_path / "page.html")
    assert needs_nothing(page)
    parts = onnx_facts(fp32_onnx)["parts"]
    for part in parts:
        assert part in page.said
    largest = max(entry["weight_bytes"] for entry in parts.values())
    expected = [round(100 * entry["weight_bytes"] / largest, 2) for entry in parts.values()]
    assert page.bars()[1:] == expected
    assert max(expected) == 100
    assert page.said.count("attention fp32") == 2


def test_page__of_a_bundle_and_its_engine(fp32_onnx: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    from export.build import BundleOptions, build_bundle
    from export.engine.options import BuildOptions

    bundle = tmp_path / "bundle"
    options = BuildOptions(targets=("sm_89",), profiles=((1, 2, 2),))
    build_bundle(fp32_onnx, bundle, BundleOptions(backends=("tensorrt-rtx",), engine=options))
    page = page_of(bundle, tmp_path / "page.html")
    assert needs_nothing(page)
    text = " ".join(page.said)
    engine = next((bundle / "engines").iterdir())
    for name in ("model.onnx", "model_fp16.onnx", "golden.npz", f"engines/{engine.name}"):
        assert name in page.said
    assert "attention fp16" in page.said
    assert re.search(r"built in [\d.]+ s, with [\d.]+ MB of memory", text)
    shown = page_of(engine, tmp_path / "engine.html")
    assert "Its layers are not shown" in " ".join(shown.said) or "Layers by precision" in shown.said

    refused = CliRunner().invoke(inspect_command, [str(bundle), "--html-file", str(bundle / "page.html")])
    assert isinstance(refused.exception, UsageError)
    assert not (bundle / "page.html").exists()
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    content = bytearray((damaged / "model.onnx").read_bytes())
    content[-1] ^= 1
    (damaged / "model.onnx").write_bytes(content)
    page = page_of(damaged, tmp_path / "page.html")
    assert "model.onnx DIFFERS from the manifest" in page.said


def test_page__of_an_opened_engine_counts_its_layers() -> None:
    layers = {
        "layers": 7,
        "by_precision": {"fp16": 6, "fp32": 1},
        "by_type": {"kgen": 7},
        "fused_attention": {"found": True, "count": 2, "layers": ["_gemm_mha_v2"]},
    }
    facts: dict[str, Any] = {
        "kind": "engine",
        "path": "a.engine",
        "size": 1000,
        "sha256": "0" * 64,
        "header": {"magic": "ftrt", "version": None},
        "name": None,
        "bundle": None,
        "fused_attention": {"found": True, "kernels": []},
        "opened": {"reason": None, "tensors": [], "layers": layers},
    }
    page = Page(page_from_facts(facts, {}))
    assert page.bars() == [100.0, 16.67, 100.0]
    assert {"fp16", "fp32", "kgen"} <= set(page.said)


def test_page__hostile_names_stay_text(vit: Callable[..., Any], tmp_path: Path) -> None:
    model = vit()
    model.producer_name = "<script>alert(1)</script>"
    model.graph.node[5].name = '"><img src=x onerror=alert(2)>/conv'
    onnx.save(model, tmp_path / "model.onnx")
    page = page_of(tmp_path / "model.onnx", tmp_path / "page.html")
    assert needs_nothing(page)
    assert any("<script>alert(1)</script>" in text for text in page.said)
    assert any("<img src=x onerror=alert(2)>" in text for text in page.said)
