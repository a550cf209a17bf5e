"""The commands of ``python -m train``; their modules import nothing heavy until a command runs."""

from __future__ import annotations

import click

from runtime import __version__
from train.commands.calibrate import calibrate
from train.commands.caption import caption
from train.commands.evaluate import evaluate
from train.commands.export_official import export_official
from train.commands.fit import fit
from train.commands.import_official import import_official
from train.demo.command import demo_data


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dgsnet-train")
def cli() -> None:
    """Trains DGS-Net detectors of AI-generated images and measures them.

    Exit codes: 0 done, 1 a gate failed, 2 usage or bad input, 3 something asked for is not installed.
    """


for _command in (demo_data, caption, fit, evaluate, calibrate, import_official, export_official):
    cli.add_command(_command)
