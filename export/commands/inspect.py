"""python -m export inspect."""

from __future__ import annotations

from pathlib import Path

import click

from runtime.console import print_json, verbosity_option


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@verbosity_option
def inspect_command(path: Path, as_json: bool) -> None:
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
    reader = {BUNDLE: bundle_facts, ENGINE: engine_facts}.get(kind, onnx_facts)
    facts = reader(path)
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
