"""Tables of predictions, and the journals that make them resumable."""
