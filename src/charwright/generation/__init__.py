"""Text generation with a trained model: engine, sampling, sessions. Does not import PyTorch."""
