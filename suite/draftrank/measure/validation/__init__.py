"""Whether the intervals hold what they promise, on sessions with a known truth."""
