"""Which clips there are and what is known of them: every corpus yields one clip table."""
