"""What is inside a bundle, an ONNX file or an engine. Never imports torch."""
