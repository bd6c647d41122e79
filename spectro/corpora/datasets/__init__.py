"""The corpora, a file each."""
