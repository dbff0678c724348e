"""``python -m consumer`` is ``pinstream``."""

from consumer.cli import main

if __name__ == "__main__":
    main()
