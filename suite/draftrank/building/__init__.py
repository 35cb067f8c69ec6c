"""From a recipe to a draft: the pipeline, its cache, and what the steps need."""
