"""What is heard in the course of long recordings."""
