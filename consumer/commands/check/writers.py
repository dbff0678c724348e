"""Questions to the schema registry about what is in it: the context, and what the topics' writers registered.

Which schemas a topic's records have is in the records alone. A registry can say more only where its subjects are named
by the topic (TopicNameStrategy, the default of all serialisers): then the newest schema of ``<topic>-value`` is the one
that is written now.
"""

from __future__ import annotations

from typing import Final

from consumer.adapters.schemas import RegistrySchemas
from consumer.app import building
from consumer.avro.decode import Decoder
from consumer.commands.check.rows import Found, Said, Skip, cluster_of, counted
from consumer.engine.model import Rejection
from consumer.errors import RegistryError, first_of
from consumer.settings import Settings

_CONTEXTS: Final = "/contexts/"
# A pattern may match thousands.
_MOST_TOPICS: Final = 50


async def writers(found: Found) -> Said:
    """Can what the writers of the topics registered last be read? There is a registry."""
    settings, mapped = found.settings, found.sections
    # First: a registry that is asked for an unknown context answers, and has no schema at all.
    await _check_context(settings)
    if mapped is None:
        raise Skip("needs the schema")
    subjects = [f"{topic}-value" for topic in sorted(cluster_of(found).topics)[:_MOST_TOPICS]]
    decoder = building.decoder(settings, mapped)
    source = building.registry(settings)
    try:
        said = {subject: await _verdict(source, decoder, subject) for subject in subjects}
    except RegistryError as error:
        # Whether the registry answers was the question before; here it is only a question that cannot be asked.
        raise Skip(str(error)) from None
    finally:
        await source.close()
    unreadable = [
        f"{subject}: {text}; its records become dead letters" for subject, text in said.items() if text
    ]
    known = [subject for subject, text in said.items() if text is not None]
    # No fault: subjects may be named by the record type (RecordNameStrategy), or by anything else.
    if not known:
        return Said("no subject is named <topic>-value: what the topics hold is seen when it is read")
    # Warnings only: a subject may be left over from a writer that is gone.
    return Said(
        f"{len(known) - len(unreadable)} of {counted(len(known), 'newest schema')} can be read: {first_of(known)}",
        unreadable,
    )


async def _verdict(source: RegistrySchemas, decoder: Decoder, subject: str) -> str | None:
    """Return why this subject's newest schema cannot be read; empty: it can, or is filtered; None: there is none."""
    newest = await source.newest(subject)
    if newest is None:
        return None
    # As the service does with the schema of a record, so that the verdict is the same.
    verdict = decoder.add_schema(newest.ref, newest.schema, newest.kind)
    return verdict.message if isinstance(verdict, Rejection) else ""


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
        # A registry that does not know contexts lists none.
        if there and context not in there:
            raise RegistryError(
                f"SCHEMA_REGISTRY_URL: the registry has no context {context}, only {first_of(sorted(there))}; correct "
                "what follows /contexts/"
            )
