"""The report page: whole by itself, safe with any file name, and readable on a phone."""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.parity.checks import hop_checks
from export.parity.forms.form import Computed, Form
from export.parity.outcome import GateReport, environment
from export.parity.page.charts import Bar, bar_chart, scatter
from export.parity.page.document import BlockDrift, html_page
from export.parity.pictures.data_set import Picture
from export.parity.pictures.feeding import FileFeed
from export.parity.settings import gate_limits
from export.parity.waterfall import run_waterfall
from runtime.decision import Decision
from runtime.spec import Preprocessing

HOSTILE = "<script>alert({})<b>\"'&.png"
VOID = {"meta", "img", "br", "line", "rect", "circle"}


class Page(HTMLParser):
    """Collects tags and attributes, and refuses tags that do not match."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> GateReport:
    """A gate of two forms on eight pictures; the second moves every logit, so that verdicts change."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    pictures = []
    for index, name in enumerate(HOSTILE.format(k) for k in range(8)):
        pixels = (draw.integers(0, 256, (96, 128, 3)) // (1 + index)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
        pictures.append(Picture(name, index % 2, "gen<b>", folder / name))

    def first(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        means = images.reshape(len(images), -1, 3).mean(axis=1).astype(np.float32)
        return means[:, 0] / 20 - 1.5, means

    def second(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logit, embedding = first(images)
        return logit + np.float32(0.6), embedding

    forms = [
        Form("pytorch", "PyTorch FP32", None, "fp32", Computed("first", first)),
        Form("merged", "LoRA merged", "pytorch", "fp32", Computed("second", second)),
        Form("engine tensorrt", "engine tensorrt", "merged", "fp16", None, "no <GPU>", is_missing=True),
    ]
    limits, decision = gate_limits(None), Decision()
    feed = FileFeed(pictures, Preprocessing())
    waterfall = run_waterfall(feed, forms, [], decision=decision, limits=limits, batch=3)
    return GateReport(
        waterfall=waterfall,
        checks=tuple(check for hop in waterfall.hops for check in hop_checks(hop, limits)),
        limits=limits,
        decision=decision,
        digest="0" * 64,
        unreadable=(("lost<i>.png", "gone"),),
        borrowed=1,
        refused=(),
        environment=environment(),
        command=("python", "-m", "export", "parity", "my bundle"),
        golden=None,
    )


def test_html_page__has_its_parts_in_order(report: GateReport) -> None:
    page = Page(html_page(report).decode())
    text = " ".join(page.text)
    assert text.index("Failed") < text.index("Waterfall") < text.index("Changed verdicts")
    assert "The chain breaks at: LoRA merged" in text
    for part in ("Logits", "Generators", "How sure this is", "Environment", "Reproduce", "'my bundle'"):
        assert part in text
    assert "Drift by block" not in text
    assert len(page.of("svg")) == 3
    assert "did not run: engine tensorrt" in text


def test_html_page__asks_for_nothing(report: GateReport) -> None:
    page = Page(html_page(report).decode())
    assert not page.of("script")
    assert not page.of("link")
    assert not page.of("iframe")
    for _tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/jpeg;base64,")
    style = html_page(report).decode().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(meta for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_html_page__shows_every_flip_with_a_small_picture(report: GateReport) -> None:
    hop = next(hop for hop in report.waterfall.hops if hop.key == "merged")
    assert hop.previous is not None
    assert hop.previous.flips
    images = Page(html_page(report).decode()).of("img")
    assert {image["alt"] for image in images} == {flip.item for flip in hop.previous.flips}
    for image in images:
        content = base64.b64decode((image["src"] or "").partition(",")[2])
        with Image.open(io.BytesIO(content)) as opened:
            assert max(opened.size) <= 300
        assert len(content) < 40_000


def test_html_page__escapes_names_everywhere(report: GateReport) -> None:
    content = html_page(report).decode()
    assert "<script" not in content
    assert "gen<b>" not in content
    assert "lost<i>" not in content
    assert "no <GPU>" not in content
    assert any("<script>alert" in text for text in Page(content).text)


def test_html_page__fits_a_phone_and_both_themes(report: GateReport) -> None:
    content = html_page(report).decode()
    viewport = next(meta for meta in Page(content).of("meta") if meta.get("name") == "viewport")
    assert viewport["content"] == "width=device-width, initial-scale=1"
    assert "prefers-color-scheme: dark" in content


def test_html_page__draws_the_blocks_where_they_were_compared(report: GateReport) -> None:
    drift = [BlockDrift("block_0", 1e-4, 0.9999, 1e-2), BlockDrift("block_1", 0.3, 0.8, 1e-2)]
    page = Page(html_page(report, drift).decode())
    assert "Drift by block" in " ".join(page.text)
    assert [bar["class"] for bar in page.of("rect") if "bar" in (bar.get("class") or "")][-2:] == [
        "bar",
        "bar bad",
    ]


def test_bar_chart__is_logarithmic_and_keeps_zero_at_the_edge() -> None:
    values = {"a": 0.01, "b": 0.1, "c": 0.0}
    bars = [Bar(name, value, None, None, 1.0, "passed") for name, value in values.items()]
    widths = [float(bar["width"] or 0) for bar in Page(bar_chart(bars, "t")).of("rect")]
    assert widths[1] - widths[0] == pytest.approx((352 - 8) / 3, abs=0.2)
    assert widths[2] == 1.5


def test_scatter__leaves_out_what_is_not_finite_and_keeps_every_flip() -> None:
    values = np.linspace(-3, 3, 5000, dtype=np.float32)
    other = values.copy()
    other[7] = np.nan
    special = np.zeros(5000, bool)
    special[100] = True
    chart = scatter(
        values, other, special=special, title="t", labels=("a", "b"), boundary=0.0, is_difference=False
    )
    dots = Page(chart).of("circle")
    assert 1000 < len(dots) < 1600
    assert [dot["class"] for dot in dots].count("dot bad") == 1


@pytest.mark.parametrize("width", [390, 1280])
def test_html_page__in_a_browser_has_no_sideways_scroll(
    report: GateReport, tmp_path: Path, width: int
) -> None:
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
    if browser is None:
        pytest.skip("no chromium on this machine")
    page = tmp_path / "report.html"
    # The browser itself says how wide the content is; a frame gives it the width of a phone exactly.
    content = html_page(report).decode()
    inner = base64.b64encode(content.encode()).decode()
    page.write_text(
        f'<iframe id="f" style="border:0;width:{width}px;height:800px"></iframe><script>'
        "const f=document.getElementById('f');f.onload=()=>{const e=f.contentDocument.documentElement;"
        "document.title=e.scrollWidth+' '+f.clientWidth};"
        f"f.srcdoc=new TextDecoder().decode(Uint8Array.from(atob('{inner}'),c=>c.charCodeAt(0)));</script>",
        encoding="utf-8",
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [browser, *flags, "--window-size=1400,900", "--virtual-time-budget=4000", "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip
    title = done.stdout.partition("<title>")[2].partition("</title>")[0]
    assert title, done.stderr[-500:]
    content_width, frame_width = map(int, title.split())
    assert frame_width == width
    assert content_width <= frame_width
    shot = tmp_path / "page.png"
    subprocess.run(
        [browser, *flags, f"--window-size={max(width, 500)},2000", f"--screenshot={shot}",
         page.as_uri()],
        capture_output=True, check=True, timeout=90,
    )  # fmt: skip
    with Image.open(shot) as opened:
        assert np.asarray(opened.convert("L")).std() > 5  # something is drawn
