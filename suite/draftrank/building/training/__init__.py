"""Distillation: a draft trained towards its target."""
