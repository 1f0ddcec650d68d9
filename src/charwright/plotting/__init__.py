"""Learning curves of one or several runs, as a figure or as text in a terminal."""
