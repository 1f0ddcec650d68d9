"""A search for better options, in trials of a few minutes each."""
