"""Recommenders to learn from: a checkpoint, a function, stored scores, or an API."""
