"""How well a model predicts a text: static and dynamic evaluation."""
