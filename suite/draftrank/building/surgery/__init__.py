"""Removal and reduction of layers, channels and vocabularies."""
