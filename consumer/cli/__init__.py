"""The command line: parse, call the app, turn errors into one line and an exit code.

Exit codes (contract.md): 0 done; 1 something failed; 2 wrong usage or settings; 3 the destination refuses this
account and patience ran out. Errors go to stderr, one readable line each; a traceback only with ``--debug``.
The app is imported when a command runs, so that ``--help`` is quick.

`base` holds what commands share, `root` the group; each other module adds its commands to it when it is imported.
"""

from consumer.cli import commands, dead_letters, offsets, replay
from consumer.cli.root import main

__all__ = ["commands", "dead_letters", "main", "offsets", "replay"]
