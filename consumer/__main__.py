"""``python -m consumer`` is ``pinstream``."""

from consumer.commands import main

if __name__ == "__main__":
    main()
