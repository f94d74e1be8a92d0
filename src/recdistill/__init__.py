"""Distil any recommender, yours or one behind an API, into a small model that you own."""

__version__ = "0.1.0"
