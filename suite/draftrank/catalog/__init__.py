"""What is declared: targets, tasks, suites and recipes, and the workspace that holds them."""
