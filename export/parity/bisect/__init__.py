"""Where a chain breaks: drift of every block, the fewest blocks to keep FP32, and a bundle repaired so."""
