"""Summary of a session's trials for each arm."""
