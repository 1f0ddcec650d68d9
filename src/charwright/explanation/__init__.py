"""What a trained network does with a text: its surprise, its neurons, how far back it remembers, its gates."""
