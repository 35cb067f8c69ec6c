"""A Hugging Face model taken apart and put together again: its architecture, forms, vocabulary and files."""
