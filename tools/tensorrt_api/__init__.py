"""Proving the TensorRT calls of this project against five versions, on a machine that has none of them."""
