"""Cost model: parts of a step, and predictions for another k, machine or draft."""
