"""From a target alone to the best draft found for it."""
