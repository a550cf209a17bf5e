"""Measuring a trained run: scores per generator, robustness, tables, files and plots; and calibrating it."""
