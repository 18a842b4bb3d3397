"""Rerankers that learn which documents a reader needs: three losses, their weighting, training, metrics."""
