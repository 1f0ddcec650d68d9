"""The terminal editor of `charwright compose`, based on prompt_toolkit."""
