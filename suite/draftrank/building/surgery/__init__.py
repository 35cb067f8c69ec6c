"""Layers, channels and vocabularies taken out of a model or made smaller."""
