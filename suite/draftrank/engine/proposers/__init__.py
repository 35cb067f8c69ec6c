"""What proposes tokens: one file per kind of draft, its declaration and its work together."""
