"""Checkpoints: the network, the folder and its description."""
