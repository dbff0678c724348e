"""What follows from an answer to `FetchSchema`: its records go on, are rejected, or wait."""

from __future__ import annotations

from consumer.engine.admission import Admission
from consumer.engine.context import Context
from consumer.engine.intake import SchemaLearner
from consumer.engine.interface import SchemaFound, SchemaMissing, SchemaUnavailable
from consumer.engine.parking import Parking


class SchemaAnswers:
    """Applies what the registry said to the records that wait for it."""

    def __init__(
        self, context: Context, parking: Parking, admission: Admission, decoder: SchemaLearner
    ) -> None:
        self._context = context
        self._parking = parking
        self._admission = admission
        self._decoder = decoder

    def found(self, happened: SchemaFound) -> None:
        """The schema is there: whether it can be read is the decoder's to say."""
        rejection = self._decoder.add_schema(happened.ref, happened.schema, happened.kind)
        self._context.report(
            "info" if rejection is None else "error", "schema", ref=happened.ref.value,
            verdict="known" if rejection is None else rejection.code,
        )  # fmt: skip
        self._admission.unparked(self._parking.found(happened.ref))

    def missing(self, happened: SchemaMissing) -> None:
        """There is none, or not yet."""
        ref, now = happened.ref, self._context.now.monotonic
        final = self._parking.missing(ref, now, self._context.jitter())
        if final:
            self._context.report(
                "error", "schema", ref=ref.value, verdict="no_such_schema", records=len(final)
            )
            self._admission.unparked(final, self._decoder.missing(ref))
        elif self._parking.denied_for(ref) == 0:
            patience = self._context.policy.schema_patience
            self._context.report("warning", "schema_missing", ref=ref.value, patience=patience)

    def unavailable(self, happened: SchemaUnavailable) -> None:
        """It is not known: its records wait."""
        context = self._context
        context.counters.failures["registry"] += 1
        context.report("warning", "schema_unavailable", ref=happened.ref.value, reason=happened.reason)
        self._parking.unavailable(happened.ref, context.now.monotonic, context.jitter())
