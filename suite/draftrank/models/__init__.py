"""Hugging Face models taken apart and put together: architecture, forms, vocabularies, stop tokens, GGUF."""
