"""What leaves the training machine: a saved student, and ways to ask it."""
