"""Baseline systems, trained and evaluated on the same clips and the same speakers."""
