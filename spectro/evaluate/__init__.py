"""Probabilities in, numbers and pictures for people out."""
