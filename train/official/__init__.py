"""Checkpoints of other programs, in and out: DGS-Net's released code and UnivFD's linear head."""
