"""Messaging systems. `base` is the seam; the others are reached by URL scheme only."""
