"""Estimates with intervals, comparisons and ranks from trials."""
