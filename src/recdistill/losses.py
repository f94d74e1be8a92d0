"""Losses shared by two or more methods."""
