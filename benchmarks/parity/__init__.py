"""The parity gate: how much of its time is not forward passes."""
