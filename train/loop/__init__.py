"""The training loop: processes, optimiser, steps, logs, what is kept, and where a killed run goes on."""
