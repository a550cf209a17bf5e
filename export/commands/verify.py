"""python -m export verify."""

from __future__ import annotations

from pathlib import Path

import click

from runtime.console import verbosity_option


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@verbosity_option
def verify(bundle: Path) -> None:
    """Checks the digest of the manifest and the hash of every file of BUNDLE."""
    from runtime.bundle import open_bundle

    with open_bundle(bundle, verify="full") as opened:
        opened.join()
        count = len(opened.manifest.files)
    click.echo(f"{bundle}: digest and {count} files are as written")
