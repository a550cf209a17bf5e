"""The commands of ``python -m export``; their modules import nothing heavy until a command runs."""

from __future__ import annotations

import click

from export.commands.build_engine import build_engine
from export.commands.doctor import doctor
from export.commands.inspect import inspect_command
from export.commands.onnx import onnx
from export.commands.parity import parity
from export.commands.set_decision import set_decision
from export.commands.verify import verify
from runtime import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dgsnet-export")
def cli() -> None:
    """Turns a trained checkpoint into a verified bundle with ONNX graphs and engines.

    Exit codes: 0 done, 1 a gate failed, 2 usage or bad input, 3 something asked for is not installed.
    """


for _command in (build_engine, onnx, set_decision, parity, verify, inspect_command, doctor):
    cli.add_command(_command)
