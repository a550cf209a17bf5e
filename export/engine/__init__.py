"""Building TensorRT and TensorRT-RTX engines from ONNX files. Never imports torch."""
