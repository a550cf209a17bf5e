"""The forms of one model, from PyTorch to the engine, and what is asked of each by itself."""
