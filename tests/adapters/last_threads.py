"""``python -m tests.adapters.last_threads ARGUMENTS`` runs ``pinstream ARGUMENTS`` and prints which threads are
left at its end.

The last line on stderr has the names of the threads of librdkafka and of pinstream that still run when the interpreter
is about to end. Linux only: the names are read from /proc.
"""

from __future__ import annotations

import atexit
import sys
import threading
from pathlib import Path


def _check() -> None:
    names = [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")]
    native = [name for name in names if name.startswith("rdk:")]
    ours = [one.name for one in threading.enumerate() if one.name.startswith("pinstream-")]
    print("left:", ",".join(sorted(native + ours)) or "nothing", file=sys.stderr)


if __name__ == "__main__":
    atexit.register(_check)  # registered before all others, so it is called after them
    from consumer.commands import main

    main()
