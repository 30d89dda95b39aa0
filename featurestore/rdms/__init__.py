"""Representational geometry: how different the activations are for each pair of images."""
