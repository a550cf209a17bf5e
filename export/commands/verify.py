"""python -m export verify."""

from __future__ import annotations

from pathlib import Path

import click

from runtime.console import print_json, verbosity_option


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output")
@verbosity_option
def verify(bundle: Path, as_json: bool) -> None:
    """Checks the digest of the manifest and the hash of every file of BUNDLE."""
    from runtime.bundle.opening import open_bundle

    with open_bundle(bundle, verify="full") as opened:
        opened.join()
        count, digest = len(opened.manifest.files), opened.manifest.digest
    if as_json:
        print_json({"schema": 1, "bundle": str(bundle), "digest": digest, "files": count})
        return
    click.echo(f"{bundle}: digest and {count} files are as written")
