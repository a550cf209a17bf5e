"""Training of DGS-Net: CLIP + LoRA with gradient surgery. Importing it loads nothing heavy."""
