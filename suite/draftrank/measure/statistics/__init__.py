"""From trials to estimates with intervals, comparisons and ranks."""
