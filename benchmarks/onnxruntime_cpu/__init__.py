"""Latency of the CPU engine against PyTorch, OpenVINO and other ways to run the graph in ONNX Runtime."""
