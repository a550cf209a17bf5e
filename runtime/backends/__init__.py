"""The ways to run a bundle's graph. Each lives in its own module and is imported only when it is chosen."""
