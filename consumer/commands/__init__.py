"""The command line: parse, call the app, turn errors into one line and an exit code.

Exit codes (docs/run.md): 0 done; 1 something failed; 2 wrong usage or settings; 3 the destination refuses this
account and patience ran out. Errors go to stderr, one readable line each; a traceback only with ``--debug``.
The app is imported when a command runs, so that ``--help`` is quick.

`base` holds what commands share, `root` the group; each other module adds its commands to it when it is imported.
"""

from consumer.commands import simple
from consumer.commands.dead_letters import arguments as of_dead_letters
from consumer.commands.offsets import arguments as of_offsets
from consumer.commands.replay import arguments as of_replay
from consumer.commands.root import main

__all__ = ["main", "of_dead_letters", "of_offsets", "of_replay", "simple"]
