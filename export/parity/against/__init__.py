"""An older bundle against a newer one: how many verdicts change on the same pictures."""
