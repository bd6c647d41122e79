"""Pictures in, checkpoint out."""
