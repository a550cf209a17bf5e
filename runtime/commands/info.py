"""``info``: what a bundle holds and what of it runs here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runtime.commands.options import BUNDLE
from runtime.console import print_json, verbosity_option
from runtime.errors import MissingDependencyError

if TYPE_CHECKING:
    from runtime.bundle.manifest import Manifest
    from runtime.bundle.opening import Bundle


@click.command()
@BUNDLE
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
@verbosity_option
def info(bundle: str, as_json: bool) -> None:
    """Show what a bundle holds and what of it would run here. Hashes are not checked: predict does that."""
    from runtime.bundle.opening import open_bundle

    with open_bundle(bundle, verify="off") as opened:
        facts = _facts(opened)
    if as_json:
        print_json(facts)
        return
    decision = facts["decision"]
    click.echo(f"bundle     {facts['path']}")
    click.echo(f"digest     {facts['digest']}")
    click.echo(f"embedding  {facts['embed_dim']} values")
    click.echo(f"decision   threshold {decision['threshold']}, temperature {decision['temperature']}, "
               f"uncertain {decision['uncertain']}")  # fmt: skip
    click.echo(f"golden     {facts['golden']['file']}, reference {facts['golden']['reference']}")
    for engine in facts["engines"]:
        batches = " ".join("-".join(map(str, profile)) for profile in engine["profiles"])
        click.echo(
            f"engine     {engine['file']}: {engine['backend']} {engine['version']} {engine['precision']}, "
            f"batch {batches}, {' '.join(engine['targets'])}, verified {engine['verified']}"
        )
    for name, entry in facts["files"].items():
        click.echo(f"file       {name}: {entry['size']} bytes, sha256 {entry['sha256'][:16]}")
    here = facts["here"]
    click.echo(f"here       {here['error'] or here['backend'] + ', engine ' + here['engine']}")
    for rejection in here["rejected"]:
        click.echo(f"           not {rejection['candidate']}: {rejection['reason']}")


def _facts(bundle: Bundle) -> dict[str, Any]:
    from runtime.names import printable_name

    manifest = bundle.manifest
    return {
        "schema": manifest.raw["schema"],
        "path": printable_name(str(bundle.path)),
        "digest": manifest.digest,
        "embed_dim": manifest.embed_dim,
        "backbone": manifest.raw["backbone"],
        "decision": manifest.decision.to_json(),
        "preprocessing": manifest.preprocessing.to_json(),
        "tolerances": manifest.tolerances,
        "golden": {"file": manifest.golden_file, "reference": manifest.golden_reference},
        "engines": [entry.to_json() for entry in manifest.engines],
        "files": {n: {"size": e.size, "sha256": e.sha256} for n, e in manifest.files.items()},
        "provenance": manifest.raw["provenance"],
        "here": _here(manifest),
    }


def _here(manifest: Manifest) -> dict[str, Any]:
    from runtime.backends.selection import select_engine

    try:
        report = select_engine(manifest)
    except MissingDependencyError as err:
        return {"backend": None, "engine": None, "rejected": [], "error": str(err)}
    rejected = [{"candidate": r.candidate, "reason": r.reason} for r in report.rejected]
    return {"backend": report.name, "engine": report.engine, "rejected": rejected, "error": None}
