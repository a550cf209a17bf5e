"""Writing bundles so that a reader sees the old one or the new one, never something between."""
