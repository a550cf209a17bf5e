"""What this machine can build and run, and why not. Never imports torch; never ends with a traceback."""
