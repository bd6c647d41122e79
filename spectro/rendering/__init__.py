"""Render clips and augmented copies as PNGs with an index."""
