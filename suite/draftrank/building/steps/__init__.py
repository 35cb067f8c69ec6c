"""Compression steps, one file per family: its declaration and its work."""
