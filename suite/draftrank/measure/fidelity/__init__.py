"""Whether outputs are the target's own, and how good they are where a rule is lossy."""
