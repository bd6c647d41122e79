"""Timelines of long recordings."""
