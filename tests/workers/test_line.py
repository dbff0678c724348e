"""The pipe from a worker to its supervisor ends with the worker."""

from __future__ import annotations

import os
import signal
import time
import warnings

from consumer.workers.line import ReportLine, WorkerReport


def test_a_child_that_outlives_the_worker_does_not_keep_the_pipe() -> None:
    """A function of the user's may fork: the supervisor still sees the worker's end."""
    out, into = os.pipe()
    lifeline, kept = os.pipe()
    line = ReportLine(into, lifeline)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there are threads: that is the point
        child = os.fork()
        if not child:
            time.sleep(600)
    try:
        line.end(WorkerReport(error="the last"))
        os.close(into)  # as the end of the process does
        with os.fdopen(out, "rb") as pipe:
            assert b"the last" in pipe.read()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(lifeline)
        os.close(kept)
