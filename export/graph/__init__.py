"""The FP32 ONNX graph of a detector, written node by node from its weights."""
