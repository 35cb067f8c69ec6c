"""Distillation: a draft is trained to predict its target."""
