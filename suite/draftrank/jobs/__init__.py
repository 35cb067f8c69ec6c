"""The plan of a run and who executes it."""
