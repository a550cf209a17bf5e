"""Data sets on disk: where the samples are, their captions, and the mosaics that training sees."""
