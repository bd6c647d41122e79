"""Read, clean and augment recordings and streams."""
