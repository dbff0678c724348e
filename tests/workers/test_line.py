"""The pipes between worker and supervisor: whole frames, the latest report, and the end."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import struct
import subprocess
import sys
import textwrap
import time
import warnings

import pytest

from consumer.web.status import document_of
from consumer.workers.line import MAX_FRAME_BYTES, ReportLine, WorkerReport, frame, hear
from tests.web.building import busy, full_counters, statistics


async def heard(data: bytes) -> list[WorkerReport]:
    """The reports that the supervisor reads from these bytes."""
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    found = []
    while (said := await hear(reader)) is not None:
        found.append(said)
    return found


async def test_a_snapshot_arrives_as_it_was() -> None:
    """Every figure of it."""
    [said] = await heard(frame(WorkerReport(busy())))
    assert said.statistics is not None
    assert document_of(said.statistics) == document_of(busy())
    assert said._replace(statistics=None) == WorkerReport()


async def test_a_frame_that_is_cut_off() -> None:
    """A worker that is killed while it writes: whole frames before that are read."""
    whole = frame(WorkerReport(statistics=statistics(counters=full_counters())))
    for cut in (1, 3, 4, 5, len(whole) - 1):
        assert len(await heard(whole + whole[:cut])) == 1


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


async def test_an_invalid_frame() -> None:
    """A frame that is too long, is no report, or cannot be read is refused."""
    body = pickle.dumps("hello")
    assert await heard(struct.pack(">I", len(body)) + body) == []
    for bad in (struct.pack(">I", MAX_FRAME_BYTES + 1) + b"x", b"text on stdout\n" + b"x" * 2**21):
        with pytest.raises(Exception, match=r".+"):
            await heard(bad)


async def test_the_latest_report_is_kept_and_the_last_comes_last() -> None:
    """While the supervisor does not read, a worker neither waits nor collects reports: a new one replaces the
    queued one."""
    (source, sink), (nothing, alive) = os.pipe(), os.pipe()
    line = ReportLine(sink, nothing)
    big = "x" * 200_000  # more than a pipe holds: the first one blocks the writer
    for number in range(50):
        line.say(WorkerReport(unhealthy=str(number), error=big))

    def end() -> None:
        line.end(WorkerReport(unhealthy="99"))
        os.close(sink)

    ending = asyncio.create_task(asyncio.to_thread(end))
    data = b""
    while part := await asyncio.to_thread(os.read, source, 1 << 20):
        data += part
    await ending
    numbers = [int(said.unhealthy or "") for said in await heard(data)]
    assert numbers[-2:] == [49, 99]
    assert len(numbers) <= 4
    for descriptor in (source, nothing, alive):
        os.close(descriptor)


PROGRAM = """
import signal, sys, time
from consumer.workers.line import ReportLine, WorkerReport

line = ReportLine.take()
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
line.end_with_it(0.2)
print("printed")
line.say(WorkerReport(error="hello"))
time.sleep(60)
"""


@pytest.mark.parametrize(("how", "code"), [("hears", -signal.SIGTERM), ("deaf", 70)])
def test_a_worker_ends_when_its_supervisor_is_gone(how: str, code: int) -> None:
    """At the end of stdin the worker gets SIGTERM, and is ended after the grace. What it prints never enters the
    pipe."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    (length,) = struct.unpack(">I", process.stdout.read(4))
    assert pickle.loads(process.stdout.read(length)) == WorkerReport(error="hello")
    _, complaints = process.communicate(timeout=30)
    assert process.returncode == code
    assert complaints in (b"printed\n", b"")
