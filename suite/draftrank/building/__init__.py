"""From a recipe to a draft: the pipeline with its cache, compression steps, training and export."""
