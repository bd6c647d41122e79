"""What a checkpoint is: its network, its folder, and what it says of itself."""
