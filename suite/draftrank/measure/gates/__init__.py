"""Gates: checks that a result must pass to be ranked."""
