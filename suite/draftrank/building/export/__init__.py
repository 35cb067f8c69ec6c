"""A built draft in the forms that other programs read."""
