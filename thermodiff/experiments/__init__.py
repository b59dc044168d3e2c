"""Experiments of the literature, repeated with error bars: one command each, resumable."""
