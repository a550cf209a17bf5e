"""One module per sub-command. They import click and the standard library; the rest only when they run."""
