"""From texts to batches of ids: corpus, vocabulary, sequences."""
