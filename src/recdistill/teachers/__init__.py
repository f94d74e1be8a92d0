"""Recommenders to learn from: a checkpoint, a function, or an API."""
