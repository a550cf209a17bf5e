"""The report of a gate as one HTML file that needs nothing else."""
