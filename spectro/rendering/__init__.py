"""Clips and copies of them in, PNGs and their index out."""
