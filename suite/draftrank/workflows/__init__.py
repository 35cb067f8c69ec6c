"""The work of a command from end to end: sweep, search, tune-k, verify, submit, export, keep."""
