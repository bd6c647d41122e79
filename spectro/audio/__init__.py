"""Sound in: recordings and streams read, cleaned, and altered."""
