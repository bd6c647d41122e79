"""Waveform in, picture out; knows no corpus and does not import torch."""
