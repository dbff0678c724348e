"""The command ``pinstream``, and ``python -m consumer``: first the signal handler, then the imports.

Importing a command takes up to a second. As process 1 of a container, a process without a handler ignores SIGTERM; as
any other it ends by the signal, which a supervisor takes for a crash.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
from typing import NoReturn

from consumer import GARBAGE

# 128 + SIGTERM, as in a shell.
_ENDED = 143
_STDERR = 2


def enter() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _end_before_start)
    _open_what_is_closed()
    gc.set_threshold(*GARBAGE)
    from consumer.commands import main  # not before there is a handler

    try:
        main()
    except SystemExit as end:
        if _is_service():
            _leave(end.code)
        raise


def _open_what_is_closed() -> None:
    # Without stderr (``2>&-``), a file or a socket would get its number, and with it what libraries write there.
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(number)


def _is_service() -> bool:
    return next((word for word in sys.argv[1:] if not word.startswith("-")), None) == "run"


def _end_before_start(number: int, _: object) -> NoReturn:
    """End on a SIGTERM that comes before the command has a handler of its own: nothing has begun."""
    if _is_service():
        os._exit(0)  # it was asked to stop
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(_ENDED)  # process 1, which this signal does not end


def _leave(code: object) -> NoReturn:
    """End a service, whose end is over. The interpreter's own would wait for threads that hang, without a limit."""
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or full
        sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    enter()
