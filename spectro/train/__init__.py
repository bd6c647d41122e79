"""Training: from rendered pictures to a checkpoint."""
