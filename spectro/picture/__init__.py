"""Render waveforms as pictures."""
