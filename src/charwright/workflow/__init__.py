"""Whole workflows in one call: train a text into a run folder, resume a run, load a run for generation."""
