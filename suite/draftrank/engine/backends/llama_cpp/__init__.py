"""Forwards by llama.cpp."""
