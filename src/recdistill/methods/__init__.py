"""Ways to train a student; one file is one method."""
