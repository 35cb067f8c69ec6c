"""Where time goes, and what another k, machine or draft would give."""
