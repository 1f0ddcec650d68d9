"""Finding the weights: the loop, the recipes, and what is shown meanwhile."""
