"""Forwards by transformers, with a KV cache that rolls back."""
