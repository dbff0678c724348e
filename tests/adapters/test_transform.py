"""The thread of the user's function: the event loop goes on while the function works, and reports one that is slow."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from consumer.adapters.transform import SLOW, TransformThread
from consumer.conversion.transform import FILTERED, Transformer
from consumer.engine.messages import Transform, TransformIsSlow

SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "R",
    "fields": [{"name": "id", "type": "string"}, {"name": "n", "type": "long", "default": 0}],
}
LIMIT = 60.0


def run(
    function: Callable[[dict[str, Any]], dict[str, Any] | None], count: int = 3
) -> tuple[Any, list[TransformIsSlow]]:
    """Return the thread's result for `count` records, and the warnings that came meanwhile."""
    said: list[TransformIsSlow] = []

    async def session() -> Any:
        thread = TransformThread(Transformer(function, "shop.events:clean", SCHEMA))
        try:
            async with asyncio.timeout(LIMIT):
                return await thread.run(
                    Transform(7, [{"id": str(n), "n": n} for n in range(count)]), said.append
                )
        finally:
            await thread.close()

    return asyncio.run(session()), said


def test_it_is_called_for_each_record_in_its_own_thread() -> None:
    """The function is called for one record after the other, never in the event loop's thread."""
    threads = set()

    def double(record: dict[str, Any]) -> dict[str, Any] | None:
        threads.add(threading.current_thread())
        return None if record["id"] == "1" else record | {"n": record["n"] * 2}

    done, said = run(double)
    assert done.number == 7
    assert done.results == [{"id": "0", "n": 0}, FILTERED, {"id": "2", "n": 4}]
    assert threading.main_thread() not in threads
    assert not said


def test_a_slow_function_returns_some_of_the_records_at_a_time() -> None:
    """A hundred milliseconds' worth of records, at least one: results do not wait for all."""

    def slow(record: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.15)
        return record

    done, _ = run(slow)
    assert done.results == [{"id": "0", "n": 0}]


def test_a_long_call_is_reported_while_it_runs() -> None:
    """With its record and time; the event loop goes on although the function computes."""
    turns = 0
    enough = threading.Event()

    def slow(record: dict[str, Any]) -> dict[str, Any]:
        while not enough.is_set():  # it never waits: only Python's switching of threads lets others run
            pass
        return record

    async def session() -> Any:
        nonlocal turns
        thread = TransformThread(Transformer(slow, "shop.events:clean", SCHEMA))
        said: list[TransformIsSlow] = []
        work = asyncio.create_task(thread.run(Transform(7, [{"id": "0"}, {"id": "1"}]), said.append))
        async with asyncio.timeout(LIMIT):
            while not said:
                await asyncio.sleep(0.01)
                turns += 1
        assert not work.done()
        enough.set()
        await work
        await thread.close()
        return said

    [slow_call] = asyncio.run(session())
    assert (slow_call.number, slow_call.row) == (7, 0)
    assert slow_call.seconds >= SLOW
    assert turns >= 10


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, GeneratorExit, RecursionError, asyncio.CancelledError]
)
def test_any_exception_rejects_its_record_alone(error: type[BaseException]) -> None:
    """Whatever exception the function raises rejects its record alone, and the next record is converted."""

    def raises(record: dict[str, Any]) -> dict[str, Any]:
        if record["id"] == "1":
            raise error("secret")
        return record

    done, _ = run(raises)
    assert [isinstance(one, dict) for one in done.results] == [True, False, True]
    assert done.results[1].code == "transform_failed"
    assert error.__name__ in done.results[1].message
    assert "secret" not in done.results[1].message


def test_without_a_stderr_it_works_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a stderr the thread works; only the report of a function that blocks all of Python is lost."""
    monkeypatch.setattr(sys, "stderr", None)
    done, _ = run(lambda record: record)
    assert len(done.results) == 3


_IN_C = """
import asyncio, re
from consumer.adapters import transform
from consumer.engine.messages import Transform

transform._STANDS_STILL = 0.5


class Function:
    def apply(self, event):
        re.match(r"(a+)+$", event["text"])
        return event


async def main():
    thread = transform.TransformThread(Function())
    said = []
    # The engine works on one command after the other; each takes a while longer.
    for length in range(22, 40):
        done = await thread.run(Transform(7, [{"text": "a" * length + "b"}]), said.append)
        assert len(done.results) + sum(len(one.results) for one in said) == 1
        if said:
            break
    await thread.close()
    print(said[-1].row, said[-1].seconds >= transform.SLOW)


asyncio.run(main())
"""


def test_code_in_c_that_blocks_python_is_reported() -> None:
    """Its place is written to stderr without Python's help, and reported once it returns."""
    done = subprocess.run(
        [sys.executable, "-c", _IN_C], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert (done.returncode, done.stdout) == (0, "0 True\n"), done.stderr
    assert "Timeout (0:00:00.5" in done.stderr
    assert re.search(r'File "<string>", line \d+ in apply', done.stderr)
    assert "aaaa" not in done.stderr
