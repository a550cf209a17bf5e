"""python -m export."""

from __future__ import annotations

from export.cli import cli
from runtime.console import run_cli


def main() -> None:
    """Runs the command line and exits with the code that its outcome means."""
    run_cli(cli, "python -m export")


if __name__ == "__main__":
    main()
