"""Comparing geometries: RDMs by name, noise ceilings, resampling, CKA."""
