"""The network: cells for reading, a fast recurrent core, and the language model around it."""
