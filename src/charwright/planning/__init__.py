"""Which options to train with: named recipes, recipe files, and the plan for a text, a machine and a budget."""
