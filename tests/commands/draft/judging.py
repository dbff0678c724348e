"""Shops with schemas of their own (``shops/*.toml``), records of each, and how right a draft of their mapping is.

A file has fields, one a line: a path (``?`` after a name: it may be null; ``[]``: an array), a type, what its values
are, and a documentation; the paths that are consent, and money of an unclear unit; and under ``right`` the lines that a
person would write, by key, the record type before it where there are several (a list: each of them is right). None of
their names is known to `consumer`, whose words are general ones.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.support import avro

SHOPS: Final = sorted((Path(__file__).parent / "shops").glob("*.toml"))
RECORDS: Final = 300
_NOW: Final = 1_772_366_340  # 2026-03-01T11:59:00Z
_NAMES: Final = (
    "Ana", "Bo", "Cem", "Di", "Eva", "Finn", "Hugo", "Ida", "Jon", "Kim", "Lea", "Max", "Nora", "Ole", "Pia"
)  # fmt: skip
_CITIES: Final = (
    "Berlin", "Bonn", "Ulm", "Trier", "Jena", "Kiel", "Mainz", "Hamm", "Aachen", "Bremen", "Essen", "Gera"
)  # fmt: skip
_TYPES: Final = {
    "millis": avro.logical("long", "timestamp-millis"),
    "micros": avro.logical("long", "timestamp-micros"),
    "date": avro.logical("int", "date"),
    "decimal": avro.decimal(12, 2),
}


def _uuid(bits: str) -> str:
    return "-".join((bits[:8], bits[8:12], bits[12:16], bits[16:20], bits[20:32]))


def _choice(random: Random, more: str) -> Any:
    found = random.choice(more.split(","))
    return int(found) if found.isdigit() else found


def _email(random: Random) -> str:
    return f"{random.choice(_NAMES)}.{random.randrange(9999)}@example.{random.choice(['com', 'org'])}"


# A value for a line of NDJSON, by its name in a shop's file: of a random source, the record's number and what follows
# the name.
_VALUES: Final[dict[str, Callable[[Random, int, str], Any]]] = {
    "choice": lambda random, _, more: _choice(random, more),
    "part": lambda _, number, more: more[2:].split(",")[number % len(more.split(","))].split(".")[int(more[0])],
    "uuid": lambda random, *_: _uuid(f"{random.getrandbits(128):032x}"),
    "digest": lambda random, *_: f"{random.getrandbits(256):064x}",
    "number": lambda random, number, _: 10_000 + number * 7 + random.randrange(7),
    "code": lambda random, number, more: f"{more}{10_000 + number * 7 + random.randrange(7)}",
    "email": lambda random, *_: _email(random),
    "phone": lambda random, *_: f"+49151{random.randrange(10**7, 10**8)}",
    "ip": lambda random, *_: f"84.{random.randrange(1, 250)}.{random.randrange(250)}.{random.randrange(1, 250)}",
    "agent": lambda random, *_: f"Mozilla/5.0 (X11; Linux) Chrome/{random.randrange(80, 130)}.0.1 Safari/537.36",
    "page": lambda random, *_:
        f"https://shop.example/{random.randrange(999)}{random.choice(['', '?epik=dj0', '?u=x'])}",
    "money": lambda random, *_: f"{random.randrange(5, 300)}.{random.randrange(1, 100):02}",
    "cents": lambda random, *_: random.randrange(199, 90_000),
    "whole": lambda random, *_: random.randrange(199, 90_000),
    "micros_money": lambda random, *_: 10_000 * random.randrange(99, 9999),
    "units": lambda random, *_: random.randrange(1, 400),
    "nanos": lambda random, *_: 10_000_000 * random.randrange(100),
    "key": lambda random, *_: f"{random.getrandbits(96):024x}",
    "street": lambda random, *_: f"{random.choice(_NAMES)} Road {random.randrange(1, 99)}",
    "small": lambda random, *_: random.randrange(1, 4),
    "flag": lambda random, *_: random.random() < 0.5,
    "first": lambda random, *_: random.choice(_NAMES),
    "last": lambda random, *_: random.choice(_NAMES) + random.choice(["sen", "mann", "ski"]),
    "city": lambda random, *_: random.choice(_CITIES),
    "zip": lambda random, *_: f"{random.randrange(10_000, 99_999)}",
    "sku": lambda random, *_: f"{random.choice('ABC')}{random.randrange(100, 400)}",
    "title": lambda random, *_:
        f"{random.choice(['red', 'old'])} {random.choice(['shirt', 'lamp'])} {random.randrange(99)}",
    "seconds": lambda random, *_: _NOW - random.randrange(200_000),
    "seconds_text": lambda random, *_: str(_NOW - random.randrange(200_000)),
    "millis": lambda random, *_: 1000 * (_NOW - random.randrange(200_000)),
    "micros_epoch": lambda random, *_: 1_000_000 * (_NOW - random.randrange(200_000)),
    "micros": lambda random, *_: 1000 * (_NOW - random.randrange(200_000)),  # in NDJSON, times are milliseconds
    "day": lambda random, *_: random.randrange(12_000),
    "birthday": lambda random, *_: f"19{random.randrange(50, 99)}-0{random.randrange(1, 9)}-1{random.randrange(9)}",
    "iso": lambda random, *_: f"2026-02-2{random.randrange(1, 9)}T1{random.randrange(9)}:00:00+01:00",
    "iso_z": lambda random, *_: f"2026-02-2{random.randrange(1, 9)}T1{random.randrange(9)}:00:00.123Z",
}  # fmt: skip


@dataclass
class _Node:
    """A field of a schema, or a record. `parts`: the fields of a record, by name."""

    is_optional: bool = False
    is_array: bool = False
    kind: str = ""
    values: str = ""
    doc: str = ""
    parts: dict[str, _Node] = field(default_factory=dict)

    def schema(self, name: str) -> Any:
        """The type, as Avro's JSON."""
        kind: Any = _TYPES.get(self.kind, self.kind)
        if self.parts:
            kind = {"type": "record", "name": f"{name}_r", "fields": [
                {"name": key, "type": part.schema(f"{name}_{key}"), **({"doc": part.doc} if part.doc else {})}
                for key, part in self.parts.items()]}  # fmt: skip
        elif self.kind == "enum":
            kind = avro.enum(f"{name}_e", *self.values.partition(" ")[2].split(","))
        kind = avro.array(kind) if self.is_array else kind
        return ["null", kind] if self.is_optional else kind

    def value(self, random: Random, number: int, held: dict[str, list[Any]]) -> Any:
        """A value of this, for a line of NDJSON."""
        if self.is_optional and random.random() < 0.25:
            return None
        count = random.randrange(1, 4) if self.is_array else 1
        what, _, more = self.values.partition(" ")
        made: list[Any] = [
            {key: part.value(random, number, held) for key, part in self.parts.items()}
            if self.parts
            else _VALUES[what](random, number, more)
            for _ in range(count)
        ]
        if not self.parts:
            held.setdefault(what, []).extend(made)
        if self.kind in ("decimal", "double") and not self.is_array:
            return float(made[0])
        return made if self.is_array else made[0]


class Shop:
    """One file of `SHOPS`."""

    def __init__(self, path: Path) -> None:
        known = tomllib.loads(path.read_text("utf-8"))
        names = known["name"] if isinstance(known["name"], list) else [known["name"]]
        self.name = path.stem
        self.right: dict[str, list[Any]] = {
            key: value if isinstance(value, list) else [value] for key, value in known["right"].items()
        }
        self.consents: list[str] = known.get("consents", [])
        self.unclear: list[str] = known.get("unclear", [])
        roots = {name.rpartition(".")[2]: _Node() for name in names}
        for line in known["fields"].strip().splitlines():
            path_of, kind, values, doc = (*(part.strip() for part in line.split("|", 3)), "")[:4]
            record, colon, inner = path_of.rpartition(":")
            node = roots[record] if colon else next(iter(roots.values()))
            for step in inner.split("."):
                bare = step.rstrip("?[]")
                node = node.parts.setdefault(bare, _Node(step.endswith("?"), step.endswith("[]")))
            node.kind, node.values, node.doc = kind, values, doc
        self.schemas = []
        for name, root in zip(names, roots.values(), strict=True):
            space, _, bare = name.rpartition(".")
            self.schemas.append(
                {**root.schema(bare), "name": bare, **({"namespace": space} if space else {})}
            )
        random = Random(self.name)
        tagged = [(name, root) for name, root in zip(names, roots.values(), strict=True)]
        self.lines: list[str] = []
        self.values: dict[str, list[Any]] = {}  # what was made, by the name of the kind of value
        for number in range(RECORDS):
            name, root = tagged[number % len(tagged)]
            made = root.value(random, number, self.values)
            self.lines.append(json.dumps({name: made} if len(tagged) > 1 else made))

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write the schema and the sample; return their paths."""
        schema, sample = folder / f"{self.name}.avsc", folder / f"{self.name}.ndjson"
        schema.write_text(json.dumps(self.schemas if len(self.schemas) > 1 else self.schemas[0]))
        sample.write_text("\n".join(self.lines) + "\n")
        return schema, sample


def active_lines(text: str) -> dict[str, Any]:
    """The lines of a mapping that are in force, by key, with the record type before it in a section."""
    tables = tomllib.loads(text)
    found = dict(_of_tables(tables, ""))
    for record, section in tables.get("record", {}).items():
        found |= dict(_of_tables(section, f"{record.rpartition('.')[2]}:"))
    return found


def _of_tables(tables: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for key, value in tables.items():
        if isinstance(value, dict) and key not in ("record", "topic"):
            # A line that only takes the packaged one away is none.
            yield from ((f"{before}{name}", one) for name, one in value.items() if one != "")
        elif not isinstance(value, dict):
            yield f"{before}{key}", value


@dataclass
class Verdict:
    """How right a draft is."""

    right: int = 0
    wrong: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, Any] = field(default_factory=dict)

    @property
    def precision(self) -> float:
        """Of the active lines, the share that is right."""
        return self.right / max(1, self.right + len(self.wrong))

    @property
    def recall(self) -> float:
        """Of the right lines, the share that is active."""
        return self.right / max(1, self.right + len(self.missing))


def judged(shop: Shop, text: str) -> Verdict:
    """Compare a draft with what is right."""
    verdict = Verdict()
    found = active_lines(text)
    for key, value in found.items():
        if value in shop.right.get(key, []):
            verdict.right += 1
        else:
            verdict.wrong[key] = value
    verdict.missing = {
        key: values[0] for key, values in shop.right.items() if key not in found or key in verdict.wrong
    }
    return verdict
