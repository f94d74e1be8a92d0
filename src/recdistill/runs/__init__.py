"""Runs: what they are told, what they read, how they learn, and the folder that they leave."""
