"""What a snapshot says of brokers, schemas and certificates."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from consumer.engine.figures.definitions import derived, figure, first, least, maximum, snapshot
from consumer.errors import first_of


@snapshot
class BrokerStatistics:
    """What one client of this process measures of one broker."""

    client: str = figure(
        "Who asks the broker.", status_note="`consumer`, or `producer` (of dead letters).", is_label=True
    )
    broker: str = figure(
        "The broker's id.",
        status_note="`coordinator`: the group's.",
        is_label=True,
    )
    round_trip: float | None = figure(
        "Average time from a request to its answer, over the last ten seconds.",
        "pinstream_kafka_round_trip_seconds",
        path="round_trip_seconds",
        status_note="null: nothing was asked. See [below](#brokers).",
        metric_note="A fetch waits for records, and the coordinator for other members.",
        merge=maximum,
    )
    round_trip_p99: float | None = figure(
        "99th percentile of the time from a request to its answer.",
        "pinstream_kafka_round_trip_p99_seconds",
        path="round_trip_p99_seconds",
        status_note="The highest of the last five, each of two seconds.",
        merge=maximum,
    )
    throttled: float = figure(
        "Time for which the broker held back answers to this client because of a quota.",
        "pinstream_kafka_throttled_seconds_total",
        path="throttled_seconds",
    )


@snapshot
class Silence:
    """The brokers do not answer; or they do, and the coordinator of the group does not."""

    why: str = figure("The broker that was asked last, and its error; of a coordinator, what it needs.")
    seconds: float = figure("For how long there has been no answer.")
    sentence: str = figure("The same in words.")


def silence_of_brokers(why: str, seconds: float) -> Silence:
    """No broker answers. At the start, too: then it counts from the first question."""
    return Silence(why, seconds, f"The brokers do not answer ({why}) for {seconds:.0f} s")


def silence_of_coordinator(seconds: float) -> Silence:
    """Brokers answer, and no coordinator of the group does."""
    why = (
        "the partitions of __consumer_offsets need leaders that this machine reaches; fewer brokers than "
        "offsets.topic.replication.factor cannot create it"
    )
    return Silence(why, seconds, f"No coordinator of the group answers (for {seconds:.0f} s): {why}")


def silence(description: str, metric: str, *, otherwise: str, runbook: str) -> Any:
    """Return the figure of a silence, which may be None. `runbook`: the section that is about it."""
    return figure(
        description,
        metric,
        default=None,
        status_note=f"null: {otherwise}. [Runbook](runbook.md#{runbook}).",
        metric_note=f"For how long; 0: {otherwise}.",
        number=lambda silence: 0 if silence is None else silence.seconds,
        # The longest one that a worker meets.
        merge=lambda silences: max(filter(None, silences), key=attrgetter("seconds"), default=None),
    )


@snapshot
class SchemaWait:
    """One schema that records wait for."""

    kind: str = figure(
        "How records name the schema.",
        status_note="`id`, `guid` or `fingerprint`. The longest wait is first, at most 20.",
        is_label=True,
    )
    value: str = figure("That id, GUID or fingerprint.", is_label=True)
    records: int = figure("How many records wait for it.")
    seconds: float = figure("How long the first of them has waited.", merge=maximum)
    denied_seconds: float | None = figure(
        "For how long the registry has said that there is none.",
        merge=maximum,
    )


@snapshot
class DriftedSection:
    """The latest schema met whose records differ from what the mapping reads."""

    section: str = figure(
        "The mapping's section, or its record type, whose latest writer's schema differs from what it reads.",
        is_label=True,
    )
    schema: str = figure("How records name that schema.", merge=first)
    lacks: tuple[str, ...] = figure(
        "The mapped paths that it lacks, with their fields: defaults are read.",
        "pinstream_schema_lacks_paths",
        path="lacks[]",
        status_note="[Runbook](runbook.md#a-schema-drifts).",
        number=len,
        metric_note="How many.",
        merge=lambda several: max(several, key=len, default=()),
    )
    could_fill: tuple[str, ...] = figure(
        "Recommended parameters without a source, and paths of that schema whose names suit them.",
        path="could_fill[]",
        merge=lambda several: max(several, key=len, default=()),
    )

    @derived("sentence")
    def sentence(self) -> str:
        """The same in words."""
        return drift_sentence(self.schema, self.section, self.lacks, self.could_fill)


_MAX_NAMED = 5


def drift_sentence(schema: str, section: str, lacks: Sequence[str], could_fill: Sequence[str]) -> str:
    """Say how a writer's schema differs from what the mapping reads."""
    of = f"Schema {schema} of {section}"
    return "; ".join(
        (
            *([f"{of} lacks {first_of(lacks, _MAX_NAMED)}, so defaults are read"] if lacks else []),
            *(
                [f"{'it' if lacks else of} could fill {first_of(could_fill, _MAX_NAMED)}"]
                if could_fill
                else []
            ),
        )
    )


@snapshot
class CertificateStatistics:
    """A client certificate of this process, as it was read at the start."""

    setting: str = figure("The setting that names the client's certificate.", is_label=True)
    expires: int = figure(
        "When it ends, seconds since 1970.",
        "pinstream_certificate_expires_timestamp_seconds",
        status_note="Certificates in a keystore (`…_SSL_KEYSTORE_LOCATION`) are not read.",
        merge=least,
    )
