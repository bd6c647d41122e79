"""Many systems trained and measured alike, and compared on a page."""
