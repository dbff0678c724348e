"""The options of ``pinstream draft``: a mapping to begin with, and what it makes of the sample."""

from __future__ import annotations

import asyncio
import math
import os
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from consumer.adapters.schemas import LocalSchemas
from consumer.app import building
from consumer.commands.base import DebugCommand, say
from consumer.commands.draft.proposing import Proposal
from consumer.commands.draft.sample import RecordSample
from consumer.commands.draft.writing import drafted
from consumer.commands.explain.explaining import explanation
from consumer.commands.explain.showing import Summary
from consumer.conversion.converter import Converter
from consumer.conversion.sections import Sections, load_sections
from consumer.demo.records import event_times
from consumer.engine.figures.delivered import PARAMETERS
from consumer.engine.model import SectionEvent
from consumer.errors import PinstreamError, UsageError
from consumer.settings import load

_EDITORS = "mapping.schema.json"  # what editors check a mapping with
_MAX_ADVICE = 4
_LATEST = 32_503_680_000  # the year 3000: later ones are not in seconds


@click.command(cls=DebugCommand)
@click.argument("schema", type=click.Path())
@click.option("--sample", metavar="FILE", type=click.Path(allow_dash=True),
              help="Records of this schema: NDJSON or an Avro container.")  # fmt: skip
@click.option("--topic", metavar="T", help="Read the newest records of this topic, without a group.")
@click.option(
    "--output", metavar="FILE", type=click.Path(), help="Write a new file. Default: standard output."
)
def draft(schema: str, sample: str | None, topic: str | None, output: str | None) -> None:
    """Draft a commented mapping from SCHEMA (an .avsc file, or a folder of them) and the values of a sample.

    Each line says what speaks for it. What is not sure is a comment; consent, and money of an unclear unit, always are.
    Values are shown only of booleans, enums and few texts. The last lines say what the draft makes of the sample. Only
    --topic uses the network (KAFKA_…, SCHEMA_REGISTRY_…).
    """
    if sample is not None and topic is not None:
        raise UsageError("--sample and --topic both name the records: give one of them")
    if output is not None and Path(output).exists():
        raise UsageError(f"--output {output}: this file exists, and is not overwritten: name a new one")
    path = Path(schema)
    folder = path if path.is_dir() else path.parent
    local = LocalSchemas(folder)
    schemas = local.defined_in(None if path.is_dir() else path)
    found = RecordSample(schemas)
    if sample is not None:
        found.read_file(sample)
    elif topic is not None:
        settings = load({**os.environ, "PINSTREAM_SCHEMAS_DIR": str(folder)}, needs=("kafka",))
        asyncio.run(found.read_topic(topic, settings, local))
    name = sample or topic
    if name is not None and not any(found.events):
        why = _counted(dict(sorted(found.unread.items()))) or "it is empty"
        said = "".join(f"; {code}: {message}" for code, message in sorted(found.why.items()))
        raise PinstreamError(
            f"{name}: no record can be read as {schema} ({why}): check that they belong together{said}"
        )
    has_editors = output is not None and (Path(output).parent / _EDITORS).is_file()
    text, problem, newest = draft_of(path.name, schemas, found, local, has_editors=has_editors)
    if output is None:
        click.echo(text, nl=False)
    else:
        try:
            # Never over a file that came in the meantime.
            with open(output, "x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise PinstreamError(
                f"--output {output}: cannot be written ({error.strerror}): name another file"
            ) from None
    if problem:
        raise PinstreamError(f"the draft does not load yet, complete it by hand: {problem}")
    env = {"PINSTREAM_SCHEMAS_DIR": str(folder), "PINSTREAM_SCHEMA": "" if found.typed else found.records[0],
           "PINSTREAM_MAPPING_FILE": output or "<the draft>"}  # fmt: skip
    command = ["pinstream", "explain", sample if sample and sample != "-" else "<records>"]
    if 0 < newest < _LATEST:
        # Records of a while ago are not too old then.
        command += ["--now", datetime.fromtimestamp(math.ceil(newest), UTC).isoformat()]
    assigned = " ".join(f"{key}={shlex.quote(value)}" for key, value in env.items() if value)
    say("Next: decide about the lines behind a #, then see what becomes of records: "
        f"{assigned} {shlex.join(command)}")  # fmt: skip


def draft_of(
    name: str,
    schemas: Sequence[dict[str, Any]],
    found: RecordSample,
    local: LocalSchemas,
    *,
    has_editors: bool,
) -> tuple[str, str, float]:
    """Return the draft, with what it makes of the sample; why it does not load, empty if it does; and the time of the
    newest event, in unix seconds, 0 if there is none.

    `has_editors`: what editors check a mapping with lies beside the draft.
    """
    default, is_alone = building.packaged_mapping(), len(schemas) == 1
    paths = tomllib.loads(default)["fields"]
    proposals = [
        Proposal(one, of, paths, alone=is_alone) for one, of in zip(schemas, found.events, strict=True)
    ]

    def loaded(text: str) -> Sections:
        return load_sections(text, local, default_toml=default, overlay_name="draft",
                             schema_name=proposals[0].record, is_named=is_alone)  # fmt: skip

    seen = sum(map(len, found.events))
    head = [
        *([f"#:schema ./{_EDITORS}"] if has_editors else []),
        f"# How records of {name} become conversion events: drafted by pinstream, to be checked line by line.",
        f"# It saw {f'{seen:,} records' if seen else 'no records: with --sample it says more'}.",
    ]
    text, problem = drafted(proposals, head, loaded)
    if not is_alone and all(one.missing for one in proposals):
        problem = f"no record type of {name} has an id, a time, and a name that is an event"
    if not seen or problem:
        return text, problem, 0.0
    mapped = loaded(text)
    events = [
        SectionEvent.of(number, event)
        for proposal, some in zip(proposals, found.events, strict=True)
        if isinstance(number := mapped.choose(proposal.record, None), int)
        for event in some
    ]
    times = event_times(mapped)
    newest = max((at for event in events if (at := times(event).seconds(event)) is not None), default=0.0)
    summary = _summary(mapped, events, newest, proposals, found)
    return text + "\n" + "".join(f"# {line}\n" for line in summary), problem, newest


def _summary(
    mapped: Sections,
    events: Sequence[SectionEvent],
    now: float,
    proposals: Sequence[Proposal],
    found: RecordSample,
) -> Iterator[str]:
    """Yield what `explain --summary` says of the sample, and which parameters to add first.

    Ages depend on the clock, so that the newest event of the sample happens `now`.
    """
    converter, total = (
        Converter(*(one.mapping for one in mapped.all), accounts=(), max_event_age=math.inf),
        Summary(),
    )
    for _ in total.count(("", explanation(converter.convert(event, now))) for event in events):
        pass
    said = total.document()
    yield "What `explain --summary` says of the sample (whatever the age of its events):"
    yield f"  {_counted(said['outcomes'])}"
    for what, counts in {**said["codes"], "not read": found.unread}.items():
        for code, count in sorted(counts.items()):
            yield f"  {what.removesuffix('s')} {code}: {count if isinstance(count, int) else _counted(count)}"
    covered, of = said["coverage"], sum(row["events"] for row in said["coverage"].values())
    for name, row in covered.items():
        shares = (f"{key} {count / row['events']:.0%}" for key, count in row["carried"].items() if count)
        yield f"  {name} {row['events']:,}: {', '.join(shares)}"
    carried = {one: sum(row["carried"][one.id] for row in covered.values()) for one in PARAMETERS}
    gaps = {gap.id for gap in total.coverage.gaps}
    missing = [one for one in PARAMETERS if one.id in gaps][:_MAX_ADVICE]
    if missing:
        yield "Worth adding first:"
    proposed = [line for proposal in proposals for line in proposal.lines if not line.is_active]
    for one in missing:
        above = next((f" (see {line.value} above)" for line in proposed if line.key in one.paths), "")
        yield f"  {one.id}, now {carried[one] / of:.0%}{above}: {one.advice}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
