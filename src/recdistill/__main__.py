"""``python -m recdistill`` is ``recdistill``."""

from recdistill.cli import main

if __name__ == "__main__":
    main()
