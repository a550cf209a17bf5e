"""The few CUDA calls that running an engine takes, through cuda-python or pycuda. Never imports torch."""
