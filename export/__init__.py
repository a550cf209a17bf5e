"""From a trained checkpoint to ONNX, FP16 and engines that prove they decide the same."""
