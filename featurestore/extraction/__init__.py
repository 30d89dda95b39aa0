"""Filling the gap: images through networks into columns."""
