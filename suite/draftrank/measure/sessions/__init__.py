"""Sessions: plan, order of the arms, timed decoding."""
