"""Keeping a store: checking, compacting, freezing and taking away."""
