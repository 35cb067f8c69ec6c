"""Scheduled work: jobs of fetching, building and measuring, and the executors that run them."""
