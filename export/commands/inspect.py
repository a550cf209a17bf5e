"""python -m export inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from runtime.console import print_json, verbosity_option
from runtime.errors import UsageError


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@click.option(
    "--html-file",
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="writes one page with blocks and bytes here",
)
@verbosity_option
def inspect_command(path: Path, as_json: bool, html_file: Path | None) -> None:
    """Shows what a bundle, an ONNX file or an engine at PATH holds.

    Files that differ from a bundle's manifest are shown as such; the command that judges is verify. An engine
    is opened on a machine with a GPU only, and like every engine it is code: open those that you trust.
    """
    from export.inspect.bundle import bundle_facts
    from export.inspect.engine import engine_facts
    from export.inspect.kinds import BUNDLE, ENGINE, kind_of
    from export.inspect.lines import lines_of
    from export.inspect.onnx_graph import onnx_facts

    kind = kind_of(path)
    if html_file is not None and kind == BUNDLE and path.resolve() in html_file.resolve().parents:
        raise UsageError(
            f"{html_file}: lies inside the bundle, whose files are all listed; name another place"
        )
    reader = {BUNDLE: bundle_facts, ENGINE: engine_facts}.get(kind, onnx_facts)
    facts = reader(path)
    if html_file is not None:
        _write_page(html_file, facts, path if kind == BUNDLE else None)
    if as_json:
        print_json(facts)
    else:
        for line in lines_of(facts):
            click.echo(line)
    changed = [file["name"] for file in facts.get("files", []) if not file.get("intact", True)]
    if changed:
        click.echo(
            f"warning: {len(changed)} files differ from the manifest, first: {changed[0]}; the bundle "
            "must not be used, see python -m export verify",
            err=True,
        )


def _write_page(html_file: Path, facts: dict[str, Any], bundle: Path | None) -> None:
    from export.inspect.onnx_graph import onnx_facts
    from export.inspect.page import page_from_facts
    from runtime.files import write_atomically

    graphs = {}
    for file in facts["files"] if bundle is not None else []:
        # A damaged graph is shown among the files; what it holds is not read.
        if bundle is not None and file["name"].endswith(".onnx") and file["intact"]:
            graphs[file["name"]] = onnx_facts(bundle / file["name"])
    write_atomically(html_file, page_from_facts(facts, graphs).encode("utf-8"))
    click.echo(f"page: {html_file}", err=True)
