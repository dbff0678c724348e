"""``pinstream dead-letters redrive``, from options to exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from consumer import logs
from consumer.adapters.kafka import Redriver, describe
from consumer.app import building
from consumer.app.signals import on_stop_signal
from consumer.commands.dead_letters.choosing import RedriveOptions
from consumer.commands.dead_letters.outcome import End, Outcome, tell
from consumer.commands.dead_letters.reading import TIMEOUT, KafkaReader
from consumer.commands.dead_letters.redrive import Redrive
from consumer.commands.dead_letters.through import Through, transactional_id
from consumer.commands.dead_letters.topics import chosen
from consumer.errors import Incomplete, PinstreamError
from consumer.settings import Settings, load


def run_redrive(options: RedriveOptions, environ: Mapping[str, str]) -> None:
    """Put letters back, and tell of it. Raises what is in the error tree; `Incomplete` if it was interrupted."""
    outcome = asyncio.run(_run(options, _settings(options, environ)))
    tell(outcome, as_json=options.as_json)
    trouble = _trouble(outcome)
    if trouble is not None:
        raise Incomplete(trouble)


def _trouble(outcome: Outcome) -> str | None:
    if outcome.end is End.INTERRUPTED:
        return "interrupted: run it again to go on; what was put back is marked as done"
    if outcome.guard is None:
        return None
    mostly, remedy = outcome.guard.mostly, outcome.guard.remedy
    return (
        f"stopped: too many of the letters would be dead letters again, mostly for {mostly} "
        f"({outcome.guard.cause.value}); {remedy} and run it again (or set PINSTREAM_DEAD_LETTER_SHARE=1)"
    )


def _settings(options: RedriveOptions, environ: Mapping[str, str]) -> Settings:
    """To the origin it takes Kafka alone, and nothing is logged: what goes wrong is the line it ends with."""
    if not options.through_pipeline or options.dry_run:
        return load(environ, needs=("kafka",))
    if "PINSTREAM_LOG_LEVEL" not in environ:
        # As in a replay: there is a progress bar.
        logs.mute("consumer.kafka")
    settings = load({"PINSTREAM_LOG_LEVEL": "warning", **environ}, needs=("kafka", "account", "token"))
    building.set_up_logs(settings)
    return settings


async def _run(options: RedriveOptions, settings: Settings) -> Outcome:
    stopped = asyncio.Event()
    on_stop_signal(stopped.set)
    config = settings.kafka.client_properties()
    known = (await describe(config, (), TIMEOUT)).known
    topics = chosen(settings, options.topics, known)

    def writer(topic: str) -> Redriver:
        return Redriver(config, transactional_id(topic))

    run: Redrive | Through
    if options.through_pipeline and not options.dry_run:
        run = Through(options, settings, known, stopped)
    else:
        run = Redrive(options, KafkaReader(config), writer, known, stopped)
    try:
        await run.run(topics)
    except PinstreamError:
        run.outcome.end = End.FAILED
        tell(run.outcome, as_json=options.as_json)
        raise
    return run.outcome
