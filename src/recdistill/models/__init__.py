"""Recommenders; one file is one model."""
