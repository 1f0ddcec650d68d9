"""From text to batches of ids: corpus, split, vocabulary, sequences."""
