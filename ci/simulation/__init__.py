"""Coverage of the intervals, on sessions with a known truth."""
