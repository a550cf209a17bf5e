"""FP16 as this project means it: what stays FP32, the typed graph, its emulation and its headroom."""
