"""The learning: model, adapters, prefix trees, local training, scoring, and the federation of it."""
