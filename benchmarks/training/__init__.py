"""Stage 2 of DGS-Net: this project's loop against a straightforward trainer that does the same arithmetic."""
