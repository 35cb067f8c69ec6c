"""Declarations: targets, tasks, suites and recipes, and the workspace that contains them."""
