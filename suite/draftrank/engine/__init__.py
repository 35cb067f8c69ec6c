"""The engine: autoregressive and speculative loops over a small seam to the models."""
