"""Patch selection against a Python loop over patches."""
