"""Import of foreign models as runs and export of runs to other formats: one module per format."""
