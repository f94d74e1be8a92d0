"""One plain loop, its settings, what it reads and what it leaves on disk."""
