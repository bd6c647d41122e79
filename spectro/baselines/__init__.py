"""The other systems that people compare with, on the same clips and the same speakers."""
