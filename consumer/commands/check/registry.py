"""Questions to the schema registry: does it answer, and what is in it: the context, and what writers registered.

Only the records show which schemas a topic has. The registry shows it, too, if its subjects are named by the topic
(TopicNameStrategy, the default of all serialisers): then the newest schema of ``<topic>-value`` is the one that is
written now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from consumer.adapters.aws import glue
from consumer.adapters.schemas_on_disk import KeptSchemas
from consumer.adapters.thread import run_blocking
from consumer.app import building
from consumer.avro.schema import printable
from consumer.commands.check.rows import CheckContext, Row, Skip, cluster_of, ok, warning
from consumer.commands.results import counted
from consumer.engine.figures.outside import drift_sentence
from consumer.engine.messages import FetchSchema, SchemaFound, SchemaUnavailable
from consumer.engine.model import Rejection, SchemaRef
from consumer.errors import RegistryError, first_of
from consumer.settings import Settings

_CONTEXTS: Final = "/contexts/"
# Most topics: a pattern may match thousands.
_MAX_TOPICS: Final = 50
# Characters of a context.
_LONGEST_NAME: Final = 100


async def answers(found: CheckContext) -> Sequence[Row]:
    """Does the registry answer, or can the service begin without it?"""
    settings = found.settings.registry
    if not settings.url:
        raise Skip("SCHEMA_REGISTRY_URL is not set: writers' schemas come from PINSTREAM_SCHEMAS_DIR")
    source = building.writer_schemas(found.settings, building.local_schemas(found.settings))
    try:
        # Any verdict on any id shows that it answers. 1 is the first id that a registry assigns; Glue assigns UUIDs.
        some = SchemaRef("glue", str(UUID(int=0))) if settings.is_glue else SchemaRef("id", "1")
        answer = await source.fetch(FetchSchema(some))
        # Always true here, since a registry is configured; needed for the type checker only.
        kept = await source.kept() if isinstance(source, KeptSchemas) else 0
    finally:
        await source.close()
    # A schema on disk is found although the registry does not answer; then `unanswered` has the reason.
    away = answer.unanswered if isinstance(answer, SchemaFound) else answer
    on_disk = f"{counted(kept, 'schema')} on disk"
    if not isinstance(away, SchemaUnavailable):
        # Show the login that AWS was asked with: it may be another profile or role than the user thinks.
        used = (
            [await run_blocking("pinstream-glue", glue.describe_access, settings.url)]
            if settings.is_glue
            else []
        )
        return [*map(ok, (f"answers; {on_disk}", *used))]
    found.registry_problem = away.reason
    # Waiting does not correct wrong credentials. An address that has answered before was right.
    if not kept or away.refused:
        raise RegistryError(away.reason)
    text = f"{away.reason}; until it answers, records of the schemas on disk are read, and all others wait"
    return [ok(on_disk), warning(text)]


async def writers(found: CheckContext) -> Sequence[Row]:
    """Can the schemas that the topics' writers registered last be read?"""
    settings, mapped = found.settings, found.sections
    # Glue names no schema by a topic.
    if not settings.registry.url or settings.registry.is_glue:
        return []
    # Check this first: for an unknown context, a registry answers and has no schema at all.
    await _check_context(settings)
    if mapped is None:
        raise Skip("needs the schema")
    subjects = [f"{topic}-value" for topic in sorted(cluster_of(found).topics)[:_MAX_TOPICS]]
    decoder = building.decoder(mapped)
    source = building.registry(settings)
    known, unreadable, drifted = [], [], []
    try:
        for subject in subjects:
            newest = await source.newest(subject)
            if newest is None:
                continue
            known.append(subject)
            if isinstance(newest, SchemaUnavailable):
                unreadable.append(f"{subject}: {newest.reason}; its records wait")
                continue
            # As the service does with the schema of a record, so that the verdict is the same. A filtered record is no
            # fault.
            verdict = decoder.add_schema(newest.ref, newest.schema, newest.kind)
            if isinstance(verdict, Rejection):
                unreadable.append(f"{subject}: {verdict.message}; its records become dead letters")
            drifted += [
                (warning if one.lacks else ok)(drift_sentence(f"{subject}, newest,", *one))
                for one in decoder.drift(newest.ref)
                if one.lacks or one.could_fill
            ]
    except RegistryError as error:
        # Whether the registry answers was an earlier question; here it only means that this one cannot be asked.
        raise Skip(
            "needs the schema registry" if str(error) in found.registry_problem else str(error)
        ) from None
    finally:
        await source.close()
    # No fault: subjects may be named by the record type (RecordNameStrategy), or by anything else.
    if not known:
        return [ok("no subject is named <topic>-value: what the topics hold is seen when it is read")]
    readable = f"{len(known) - len(unreadable)} of {counted(len(known), 'newest schema')} can be read"
    # Warnings only: a subject may be left over from a writer that is gone.
    return [ok(f"{readable}: {first_of(known)}"), *map(warning, unreadable), *drifted]


async def _check_context(settings: Settings) -> None:
    """Raise `RegistryError` if the URL names a context that the registry does not have: it would have no schema."""
    for url in settings.registry.url.split(","):
        root, named, rest = url.partition(_CONTEXTS)
        if not named:
            continue
        source = building.registry(settings, url=root)
        try:
            there = await source.contexts()
        finally:
            await source.close()
        # Confluent also accepts the name between colons, as it writes it in the names of subjects.
        context = rest.partition("/")[0].strip(":")
        # A registry without contexts lists none.
        if there and context not in there:
            names = first_of(
                [printable(one, _LONGEST_NAME) for one in sorted(there)]
            )  # they may hold anything
            raise RegistryError(
                f"SCHEMA_REGISTRY_URL: the registry has no context {context}, only {names}; correct what follows "
                "/contexts/"
            )
