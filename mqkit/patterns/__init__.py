"""Reliability patterns on top of the core: retry, dead letters."""
