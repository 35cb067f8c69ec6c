"""Sessions, the records they leave, and what follows from them."""
