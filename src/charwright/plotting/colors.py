"""The colours of curves."""

# Okabe and Ito, "Color Universal Design", 2008: told apart by all kinds of colour vision. Its yellow is too light here.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
ON_ANY_BACKGROUND = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Without black, for a terminal whose background may be dark."""
