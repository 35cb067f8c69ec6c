"""One file per family of compression steps: its declaration, and the call that carries it out."""
