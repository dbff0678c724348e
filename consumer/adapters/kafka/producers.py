"""Producers of librdkafka: one with a thread that polls it, that of `pinstream produce`, and that of a redrive.

*A redrive* writes marks, and letters that died again, together or not at all. It has one transactional id for each
dead-letter topic. `TransactionalWriter.start` takes this id over: it aborts the transaction that a killed redrive left
open, and fences a redrive that still runs, whose next transaction then fails. So a redrive that has started may read
the marks: they stay as they are until it writes or is fenced.

A record that the broker refuses for what it is (its size, a missing key) fails its whole transaction. To find it,
each is sent alone::

    together --refused--> one by one --sequence--> one by one --> written, or this one is refused
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import confluent_kafka
from confluent_kafka import KafkaException

from consumer.adapters.kafka import client_errors
from consumer.adapters.kafka.client_errors import cause_of, describe_error, is_unjudged_login
from consumer.adapters.kafka.configuration import (
    LOGGER,
    UNLIMITED_QUEUE,
    Config,
    make_client,
    producer_config,
    time_left,
)
from consumer.adapters.kafka.letters import Headers, NewRecord
from consumer.adapters.thread import OwnThread, in_own_thread, post
from consumer.errors import KafkaError

_Code = confluent_kafka.KafkaError

_POLL_SECONDS: Final = 0.1
_IDLE_SECONDS: Final = 1.0
"""Seconds between two polls while nothing is queued: they bring errors and statistics."""
# The partition of a record whose key decides where it goes.
_PARTITIONER: Final = -1

# Prefix of a redrive's transactional id; the name of its dead-letter topic follows.
ID_PREFIX: Final = "pinstream.redrive."
# Short: the open transaction of a killed redrive hides what follows it on the dead-letter topic from read_committed
# readers until the next redrive starts, or this time has passed.
_TRANSACTION_SECONDS: Final = 15
_START_SECONDS: Final = 30.0
_DELIVERY_SECONDS: Final = 10.0
_TRIES: Final = 4
# Calls of commit: one that timed out goes on in the client, so that a second call waits for it.
_COMMITS: Final = 2
# Errors of a record that were caused by another record of its batch or its transaction.
_ANOTHER_FAILED: Final = frozenset(
    {_Code._PURGE_QUEUE, _Code._PURGE_INFLIGHT, _Code._STATE, _Code._INVALID_DIFFERENT_RECORD}
)
_GOES_AWAY: Final = _ANOTHER_FAILED | {_Code.OUT_OF_ORDER_SEQUENCE_NUMBER}
# Errors of a record whose cause only the transaction knows: a partition that was not added to it just waits.
_UNCLEAR: Final = _ANOTHER_FAILED | {_Code._TIMED_OUT, _Code._MSG_TIMED_OUT}
# Sending records one by one shows which record is refused. (Two without a key in one batch each get the error for the
# other.)
_TOGETHER_ONLY: Final = client_errors.FOR_ONE_RECORD | {_Code._INVALID_DIFFERENT_RECORD}
_FENCING: Final = frozenset({_Code._FENCED, _Code.PRODUCER_FENCED, _Code.INVALID_PRODUCER_EPOCH})
_GONE: Final = "a topic or a partition is gone since the redrive began: run it again"
_REFUSED: Final = {
    _Code.TOPIC_AUTHORIZATION_FAILED: "this user may not write to the topic: grant WRITE on it",
    _Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "this user may not use transactions: grant WRITE on the "
    f"transactional ids that begin with {ID_PREFIX}",
    _Code.UNKNOWN_TOPIC_OR_PART: _GONE,
    _Code._UNKNOWN_TOPIC: _GONE,
    _Code._UNKNOWN_PARTITION: _GONE,
}


class PolledProducer:
    """A `confluent_kafka.Producer` with a thread of its own that polls and closes it."""

    def __init__(
        self, config: dict[str, Any], on_error: Callable[[confluent_kafka.KafkaError], None]
    ) -> None:
        self._producer = make_client(confluent_kafka.Producer, {**config, "error_cb": on_error})
        self._on_error = on_error
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._thread = OwnThread("pinstream-kafka-producer")
        # The client's `produce` only queues, and delivery reports come in `poll`, in this thread: no work for the event
        # loop.
        self._thread.begin(self._poll)

    def produce(
        self, record: NewRecord, on_report: Callable[[confluent_kafka.KafkaError | None], None]
    ) -> None:
        """Queue one record; `on_report` is called in the polling thread, once.

        Returns at once. Raises `BufferError` when the queue is full, `KafkaException` for what cannot be queued.
        """
        self._producer.produce(**record.arguments(), on_delivery=lambda error, _: on_report(error))
        self._wake.set()

    def stop(self) -> None:
        """End the polling within a moment; what is still queued is dropped. Does not wait."""
        self._stopped.set()
        self._wake.set()
        self._thread.stop()

    def _poll(self) -> None:
        while not self._stopped.is_set():
            try:
                if not len(self._producer):
                    self._wake.wait(_IDLE_SECONDS)
                    self._wake.clear()
                self._producer.poll(_POLL_SECONDS if len(self._producer) else 0.0)
            except KafkaException as error:
                # The producer has failed: each poll would return at once with the error.
                self._on_error(cause_of(error))
                self._stopped.wait()
            except Exception:
                # Raised by a callback. Without this thread no record would be acknowledged any more.
                LOGGER.exception("a delivery report could not be handled")
        # Otherwise `close` waits until all is acknowledged, possibly indefinitely.
        self._producer.purge(blocking=False)
        self._producer.close()


class RecordProducer:
    """Produces many records with back-pressure: ``await produce`` waits while the queue is full; `flush` at the end.

    Acknowledged by all in-sync replicas, idempotent. The first record that fails for good fails all that follows:
    `produce` and `flush` raise `KafkaError`, and `open_place` says where to go on. A record that fails because its
    connection had to log in is sent again, behind those that are queued. `delivery_timeout`: seconds for one record,
    retries included. `queue_records` limits what is queued, beside 32 MiB.
    """

    def __init__(
        self, config: Config, *, delivery_timeout: float = 30.0, queue_records: int = 10_000
    ) -> None:
        limits = {"queue.buffering.max.messages": queue_records, "queue.buffering.max.kbytes": 32 * 1024}
        complete = {**producer_config(config, delivery_timeout=delivery_timeout), **limits}
        self._loop = asyncio.get_running_loop()
        self._moved = asyncio.Event()
        self._error = ""
        self._failure: str | None = None
        self._unqueued: deque[tuple[int, NewRecord]] = deque()
        """Records that librdkafka has to be given, for the first time or again, by their numbers."""
        # Records given to us so far, and records that the broker has acknowledged.
        self.produced = self.delivered = 0
        # By number, the places of the others.
        self._open: dict[int, int] = {}
        # Started last: it may call back at once.
        self._producer = PolledProducer(complete, self._on_error)

    @property
    def open_place(self) -> int:
        """Return the place of the first record that is not acknowledged; 0: all are. Those before it are."""
        return next(filter(None, self._open.values()), 0)

    async def produce(
        self, topic: str, key: bytes | None, value: bytes | None, place: int = 0, headers: Headers = ()
    ) -> None:
        """Queue one record, waiting for room; `place`: where it is from. Raises `KafkaError` once any record has
        failed."""
        self.produced += 1
        self._open[self.produced] = place
        self._unqueued.append((self.produced, NewRecord(topic, _PARTITIONER, key, value, headers)))
        await self._queue()
        if self.produced % 256 == 0:
            # Let other tasks run, also when the queue is never full.
            await asyncio.sleep(0)

    async def flush(self, timeout: float) -> None:
        """Wait until all records are acknowledged. Raises `KafkaError` if a record failed, or `timeout` seconds
        passed."""
        try:
            async with asyncio.timeout(timeout):
                while self._failure is None and self.delivered < self.produced:
                    await self._queue()
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            left = self.produced - self.delivered
            self._failure = f"{left} records not acknowledged within {timeout:g} s {self._error}"
        self._raise_failure()

    async def close(self) -> None:
        """Drop what is queued and close the producer. Call `flush` first."""
        self._producer.stop()

    async def _queue(self) -> None:
        while self._unqueued:
            self._raise_failure()
            self._moved.clear()
            number, record = self._unqueued[0]
            try:
                self._producer.produce(record, partial(post, self._loop, self._count, number, record))
                self._unqueued.popleft()
            except BufferError:
                # The wait is bounded: each queued record is delivered, or fails at its time limit.
                await self._moved.wait()
            except KafkaException as error:
                self._failure = describe_error(cause_of(error))

    def _count(self, number: int, record: NewRecord, error: confluent_kafka.KafkaError | None) -> None:
        """Count a delivery report."""
        if error is None:
            self.delivered += 1
            del self._open[number]
        elif is_unjudged_login(error):
            # The broker has refused nothing. If it has stored the record all the same, there are two of it.
            self._unqueued.append((number, record))
        else:
            self._failure = self._failure or f"{record.topic}: {describe_error(error)}"
        self._moved.set()

    def _on_error(self, error: confluent_kafka.KafkaError) -> None:
        self._error = f"({describe_error(error)})"

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise KafkaError(
                "Kafka: a record was not accepted: check the broker and the topic, then produce again: "
                f"{self._failure}"
            )


class _Failure(NamedTuple):
    """Why a transaction failed."""

    cause: confluent_kafka.KafkaError
    # The index of the first record that failed, if any. If records were sent one by one, it is the cause.
    record: int | None = None
    # The commit was sent, and only the broker knows its result.
    in_doubt: bool = False


class TransactionalWriter:
    """Writes lots of records of one topic, each lot in one transaction. `transactional_id`: see above.

    Make it on the event loop. Raises `SettingsError` naming a property that librdkafka refuses.
    """

    def __init__(
        self,
        config: Config,
        transactional_id: str,
        *,
        on_error: client_errors.OnError = client_errors.ignore_error,
    ) -> None:
        loop = asyncio.get_running_loop()
        complete = {
            **producer_config(config, delivery_timeout=_DELIVERY_SECONDS),
            **UNLIMITED_QUEUE,
            "transactional.id": transactional_id,
            "transaction.timeout.ms": _TRANSACTION_SECONDS * 1000,
            # librdkafka requires it to be below the transaction's time-out.
            "socket.timeout.ms": 10_000,
            "error_cb": client_errors.ErrorReporter(partial(post, loop, on_error)),
        }
        # Used only through this attribute: an error keeps the frames that it passed through, and a local variable there
        # would keep the client alive after `close`.
        self._producer: Any = make_client(confluent_kafka.Producer, complete)
        self._thread = OwnThread("pinstream-kafka-transactions")

    @in_own_thread
    def start(self) -> None:
        """Take the transactional id over: a transaction that another process left open is aborted. Raises
        `KafkaError`."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._producer.init_transactions(time_left(deadline, 1.0))
                return
            except KafkaException as error:
                cause = cause_of(error)
                if not cause.retriable() or time.monotonic() > deadline:
                    raise _dead_end(cause) from error

    async def close(self) -> None:
        """End the client and its thread. Records that are not committed count as not written."""

        def end() -> None:
            with contextlib.suppress(KafkaException):
                self._producer.purge(blocking=False)
            # Not `close`, which would abort an open transaction: it blocks and raises where the broker hangs or has
            # fenced us. The end of the last reference destroys the client, and the broker aborts.
            self._producer = None

        await self._thread.end(end)

    @in_own_thread
    def write(self, records: Sequence[NewRecord]) -> int | None:
        """Write all records in one transaction; return None, or the index of a record that the broker refuses.

        A record that is refused for what it is keeps all from being written. Bounded by the limits above. Raises
        `KafkaError` when fenced, and when the transaction fails for good.
        """
        one_by_one = len(records) == 1
        # The client is never replaced: a new one would take the id over from a second redrive without reading that
        # one's marks.
        for _ in range(_TRIES):
            failure = self._try(records, one_by_one)
            if failure is None:
                return None
            cause = failure.cause
            # Another try could write the records twice.
            if failure.in_doubt:
                raise _dead_end(cause, in_doubt=True)
            self._abort(cause)
            if cause.code() in _TOGETHER_ONLY:
                if one_by_one and failure.record is not None and cause.code() not in _ANOTHER_FAILED:
                    return failure.record
                one_by_one = True
            # After an abort librdkafka's sequence numbers are ahead of the broker's, which requires a new epoch: that
            # costs one more abort, once. A login that had to be repeated while records were sent passes as well.
            elif cause.code() not in _GOES_AWAY and not is_unjudged_login(cause):
                raise _dead_end(cause)
        raise _dead_end(_Code(_Code._FAIL, "one abort after the other"))

    def _try(self, records: Sequence[NewRecord], one_by_one: bool) -> _Failure | None:
        """Write the records in one transaction, tried once. Return why it failed; None: all are written."""
        causes: list[confluent_kafka.KafkaError] = []
        failed: list[int] = []

        def reported(index: int, error: confluent_kafka.KafkaError | None, _: object = None) -> None:
            if error is not None:
                causes.append(error)
                failed.append(index)

        try:
            self._producer.begin_transaction()
            for index, record in enumerate(records):
                try:
                    self._producer.produce(**record.arguments(), on_delivery=partial(reported, index))
                except KafkaException as error:
                    reported(index, cause_of(error))
                if one_by_one or index == len(records) - 1:
                    # Delivery reports come in during the flush; each record has one within the delivery time-out.
                    if self._producer.flush(_DELIVERY_SECONDS + 1) and not causes:
                        causes.append(_Code(_Code._TIMED_OUT, "records were not acknowledged in time"))
                    if causes:
                        break
        except KafkaException as error:
            causes.append(cause_of(error))
        except SystemError:
            # The client raises a fatal error in the middle of a delivery report; the abort shows which.
            causes.append(_Code(_Code._FATAL))
        return _Failure(self._clearest(causes), next(iter(failed), None)) if causes else self._commit()

    def _clearest(self, causes: Sequence[confluent_kafka.KafkaError]) -> confluent_kafka.KafkaError:
        """Return the error that says most about the cause, of those that were reported."""
        if all(cause.code() in _UNCLEAR for cause in causes):
            # A failed transaction answers any call with its cause. (Beginning a second one is always an error.)
            try:
                self._producer.begin_transaction()
            except KafkaException as error:
                if (cause := cause_of(error)).code() not in _UNCLEAR:
                    return cause
        return min(causes, key=lambda cause: cause.code() in _UNCLEAR)

    def _commit(self) -> _Failure | None:
        cause = _Code(_Code._FAIL)
        for _ in range(_COMMITS):
            try:
                self._producer.commit_transaction(_TRANSACTION_SECONDS)
                return None
            except KafkaException as error:
                cause = cause_of(error)
                if not cause.retriable():
                    break
            except SystemError:
                # A fatal error, as in `_try`; the next call shows which.
                continue
        # A broker that is just fencing this id may answer a commit with UNKNOWN, which leaves the result open. So does
        # an error of a commit that was sent while the connection had to log in again, although librdkafka then wants to
        # abort.
        unsaid = cause.code() == _Code.UNKNOWN or is_unjudged_login(cause)
        in_doubt = unsaid or not cause.txn_requires_abort()
        return _Failure(cause, in_doubt=in_doubt)

    def _abort(self, cause: confluent_kafka.KafkaError) -> None:
        try:
            self._producer.abort_transaction(_TRANSACTION_SECONDS)
        except KafkaException as error:
            # The broker cannot abort a transaction that it does not know because it refused its topic.
            known = cause if cause.code() in _REFUSED else cause_of(error)
            raise _dead_end(known) from error


def _dead_end(cause: confluent_kafka.KafkaError, *, in_doubt: bool = False) -> KafkaError:
    """Return the error that ends the redrive: what happened to its transaction, and what to do."""
    said = describe_error(cause)
    if cause.code() in _FENCING:
        return KafkaError(
            "another redrive of the same dead-letter topic has taken over, or this one stood still for more than "
            f"{_TRANSACTION_SECONDS} s: it stops here; what it delivered is known ({cause.name()})"
        )
    if cause.code() in _REFUSED:
        return KafkaError(f"Kafka: {_REFUSED[cause.code()]} ({said})")
    if in_doubt:
        return KafkaError(
            "Kafka: the broker did not say whether the last transaction is committed (it may be that another "
            f"redrive has taken over): run the redrive again, it will know ({said})"
        )
    return client_errors.kafka_failure(
        cause,
        "what is done could not be marked: check the broker and the dead-letter topic, then run the redrive again",
    )
