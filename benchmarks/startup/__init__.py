"""What it takes to start: importing the runtime, and the whole of predict on one photograph."""
