"""Captions that nobody wrote: from folder names, or from a CoCa model that looks at the pictures."""
