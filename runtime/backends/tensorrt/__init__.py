"""Running TensorRT and TensorRT-RTX engines. Never imports torch; TensorRT itself only when one is opened."""
