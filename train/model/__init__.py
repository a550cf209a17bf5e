"""The detector in PyTorch: CLIP's towers, LoRA on the vision tower, heads, and the captions' features."""
