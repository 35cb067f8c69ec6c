"""The measuring itself: what is planned, in which order, and decoded under a clock."""
