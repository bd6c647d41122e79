"""A waveform in, a picture out."""
