"""Comparison of outputs with the target's own, and quality of lossy outputs."""
