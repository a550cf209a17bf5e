"""The command line of the runtime: ``python -m runtime`` and ``dgsnet-runtime``."""

from __future__ import annotations

import warnings
from typing import NoReturn

import click

from runtime import __version__
from runtime.commands.bench import bench
from runtime.commands.info import info
from runtime.commands.predict import predict
from runtime.commands.selftest import selftest
from runtime.console import run_cli


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dgsnet-runtime")
def cli() -> None:
    """Tell AI-generated pictures from real ones with an exported bundle."""


for command in (predict, bench, info, selftest):
    cli.add_command(command)


def main() -> NoReturn:
    """Runs the command line and exits with its code."""
    # Pillow warns of damaged metadata beside intact pixels, in two lines with the path of its own source.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    run_cli(cli, "python -m runtime")
