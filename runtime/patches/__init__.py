"""Patch selection: pixels to spectral entropies to the mosaic that the detector looks at. numpy only."""
