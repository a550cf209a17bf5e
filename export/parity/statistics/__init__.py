"""What the logits of two forms say of each other, in numpy alone."""
