"""What inspect found as one HTML page: no script, nothing loaded from anywhere, bars drawn by CSS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

from export.inspect.lines import LABEL_WIDTH, lines_of, size_text

_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;"
    "color:#1b1f24;background:#fff}h1{font-size:1.4rem;overflow-wrap:anywhere}h2{font-size:1.1rem;"
    "margin-top:2rem}table{border-collapse:collapse;width:100%}td,th{padding:.15rem .6rem .15rem 0;"
    "text-align:left;vertical-align:top;overflow-wrap:anywhere}th{font-weight:600}td.n{text-align:right;"
    "white-space:nowrap;font-variant-numeric:tabular-nums}td.bar{width:45%}"
    "td.bar div{height:.9rem;background:#4878a8;min-width:1px}td.bad{color:#a3201d;font-weight:600}"
    "p.note{color:#57606a}@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#16181b}"
    "td.bar div{background:#7aa6d2}p.note{color:#9aa4ad}td.bad{color:#ff8078}}"
)
# Nothing may be fetched, not even if a name inside the file smuggled a tag past the escaping.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page_from_facts(facts: dict[str, Any], graphs: dict[str, dict[str, Any]]) -> str:
    """Returns the page.

    Args:
        facts: of a bundle, an ONNX file or an engine.
        graphs: facts of the ONNX files that belong to it, by name; of an ONNX file itself, none.
    """
    kind = facts["kind"]
    body = [f"<h1>{_text(kind)} {_text(facts['path'])}</h1>"]
    if kind == "bundle":
        body += _files(facts["files"])
    elif kind == "onnx":
        graphs = {facts["path"]: facts}
        body += _files(facts["files"])
    else:
        body += _engine(facts)
    for name, graph in graphs.items():
        body += _graph(name, graph)
    body += ["<h2>All that was found</h2>", *_table(_said(facts))]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_text(facts['path'])}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _files(files: list[dict[str, Any]]) -> Iterator[str]:
    yield f"<h2>Files: {size_text(sum(file['size'] for file in files))}</h2>"
    rows: list[tuple[str, int, list[str]]] = [
        (
            file["name"] + ("" if file.get("intact", True) else " DIFFERS from the manifest"),
            file["size"],
            [],
        )
        for file in files
    ]
    yield from _bars(rows)


def _engine(facts: dict[str, Any]) -> Iterator[str]:
    yield f"<h2>Engine: {size_text(facts['size'])}</h2>"
    opened = facts["opened"]
    if opened["reason"]:
        yield f'<p class="note">Its layers are not shown: {_text(opened["reason"])}.</p>'
        return
    layers = opened["layers"]
    for title, counts in (("precision", layers["by_precision"]), ("type", layers["by_type"])):
        yield f"<h2>Layers by {title}</h2>"
        yield from _bars([(name, count, []) for name, count in counts.items()], unit="")


def _graph(name: str, facts: dict[str, Any]) -> Iterator[str]:
    total = sum(entry["weight_bytes"] for entry in facts["parts"].values())
    yield f"<h2>{_text(name)}: {facts['nodes']} nodes, {size_text(total)} of weights</h2>"
    attention = {found["part"]: f"attention {found['precision']}" for found in facts["attention"]}
    rows = [
        (part, entry["weight_bytes"], [f"{entry['nodes']} nodes", attention.get(part, "")])
        for part, entry in facts["parts"].items()
    ]
    yield from _bars(rows)
    yield (
        "<p>"
        + ", ".join(
            f"{_text(dtype)}: {entry['tensors']} tensors, {size_text(entry['bytes'])}"
            for dtype, entry in facts["weights_by_dtype"].items()
        )
        + "</p>"
    )


def _bars(rows: list[tuple[str, int, list[str]]], *, unit: str = "bytes") -> Iterator[str]:
    """Yields a table of (name, value, more columns), each with a bar as long as its share of the largest."""
    largest = max((value for _name, value, _more in rows), default=0) or 1
    yield "<table>"
    for name, value, more in rows:
        bad = ' class="bad"' if name.endswith("DIFFERS from the manifest") else ""
        shown = size_text(value) if unit else str(value)
        columns = "".join(f"<td>{_text(text)}</td>" for text in more)
        yield (
            f'<tr><td{bad}>{_text(name)}</td><td class="n">{shown}</td>'
            f'<td class="bar"><div style="width:{100 * value / largest:.2f}%"></div></td>{columns}</tr>'
        )
    yield "</table>"


def _said(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for line in lines_of(facts):
        yield line[:LABEL_WIDTH].strip(), line[LABEL_WIDTH:].strip()


def _table(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield "<table>"
    for label, text in rows:
        yield f"<tr><th>{_text(label)}</th><td>{_text(text)}</td></tr>"
    yield "</table>"


def _text(text: object) -> str:
    return escape(str(text), quote=True)
