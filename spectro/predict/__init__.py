"""Checkpoint and audio in, probabilities out."""
