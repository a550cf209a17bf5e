"""python -m train."""

from __future__ import annotations

from runtime.console import run_cli
from train.cli import cli


def main() -> None:
    """Runs the command line and exits with the code that its outcome means."""
    run_cli(cli, "python -m train")


if __name__ == "__main__":
    main()
