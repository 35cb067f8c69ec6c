"""Text for calibration and training of drafts."""
