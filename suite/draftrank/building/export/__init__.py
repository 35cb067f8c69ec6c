"""A built draft in the formats of other programs."""
