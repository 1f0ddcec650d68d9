"""From a trained model to text: sampling, the engine, the generator. No PyTorch is needed here."""
