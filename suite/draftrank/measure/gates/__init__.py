"""What a result must pass to be ranked."""
