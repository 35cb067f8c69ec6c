"""Boards: ranking of stored sessions, as records, as JSON and as a static site."""
