"""Corpora of speech: every corpus yields one clip table."""
