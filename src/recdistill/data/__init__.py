"""Interactions in, sequences and evaluation cases out."""
