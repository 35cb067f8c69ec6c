"""The text that drafts are calibrated and trained on."""
