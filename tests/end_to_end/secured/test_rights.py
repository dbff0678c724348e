"""With the rights that `pinstream check --rights` prints each command works; without one of them the message
names it."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but the package marks no re-export
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from tests.end_to_end.api import Api
from tests.end_to_end.processes import command, wait_for
from tests.end_to_end.records import PARTITIONS, records_on
from tests.end_to_end.shop import Service, Shop
from tests.support.kafka.harness import create_topic
from tests.support.kafka.secured import SecuredBroker, environment

USER = "shop"
KINDS = {
    "--topic": ResourceType.TOPIC,
    "--group": ResourceType.GROUP,
    "--transactional-id": ResourceType.TRANSACTIONAL_ID,
}


class MissingRight(NamedTuple):
    """One operation on one resource, as the printed commands name it."""

    option: str
    name: str
    pattern: str
    operation: str

    @property
    def binding(self) -> AclBinding:
        """The right as the AdminClient takes it."""
        words = {"Read": "READ", "Write": "WRITE", "Create": "CREATE", "DescribeConfigs": "DESCRIBE_CONFIGS"}
        return AclBinding(
            KINDS[self.option], self.name, ResourcePatternType[self.pattern.upper()], f"User:{USER}", "*",
            AclOperation[words[self.operation]], AclPermissionType.ALLOW,
        )  # fmt: skip


class RightsShop(Shop):
    """Topics, events, and the environment of a user who has exactly the granted rights."""

    def __init__(self, broker: SecuredBroker, api: Api, folder: Path) -> None:
        super().__init__(broker.plain, api, folder, partitions=PARTITIONS, COLUMNS="2000")
        self.broker, self.letters_topic = broker, f"{self.topic}.dead-letters"
        self.records = 60
        self.generate(self.records, invalid=0.3)
        broker.take_back_all()
        self.env |= environment(broker.with_login(USER))

    def printed(self) -> Sequence[MissingRight]:
        """The output of `check --rights kafka-acls`."""
        said = self.command("check", "--rights", "kafka-acls").stdout
        return [one for line in said.splitlines() if line[:1] != "#" for one in rights_of(line)]

    def only(self, rights: Iterable[MissingRight]) -> None:
        """Give the user exactly these rights."""
        self.broker.take_back_all()
        self.grant(rights)

    def grant(self, rights: Iterable[MissingRight]) -> None:
        """Give the user these rights, too: a service that runs lacks none meanwhile."""
        self.broker.grant([one.binding for one in rights])

    def said(self, *arguments: str) -> tuple[int, str]:
        """The exit code of a command, and all of its output."""
        done = command(*arguments, env=self.env)
        return done.returncode, done.stdout + done.stderr

    def topics(self) -> Collection[str]:
        """All topics."""
        return self.broker.admin().list_topics(timeout=30).topics

    def delete_letters(self) -> None:
        """Delete the dead-letter topic."""
        admin = self.broker.admin()  # which must live until the answer comes
        admin.delete_topics([self.letters_topic])[self.letters_topic].result(30)
        wait_for(lambda: self.letters_topic not in self.topics(), "the topic to be gone")

    @contextmanager
    def letters_wait(self, words: str) -> Iterator[Service]:
        """A service that delivers the rest and says `words` of its dead letters. After the block it stores them."""
        with self.run() as service:
            service.until(
                lambda: any(words in str(line.get("text")) for line in service.log), "what is missing"
            )
            service.until(
                lambda: (found := service.ledger())["read"] == self.records and found["open"], "what waits"
            )
            yield service
            ledger = service.until_settled(self.records)
        assert "Traceback" not in service.stderr
        assert ledger["dead_lettered"] == records_on(self.kafka, self.letters_topic) > 5
        assert ledger["delivered"] == self.api.accepted().total()


def rights_of(line: str) -> list[MissingRight]:
    """The operations of one line of ``kafka-acls.sh``."""
    words = shlex.split(line)
    assert words[0] == "kafka-acls.sh"
    assert words[words.index("--allow-principal") + 1] == f"User:{USER}"
    [option] = [word for word in words if word in KINDS]
    pattern = words[words.index("--resource-pattern-type") + 1]
    operations = [after for word, after in itertools.pairwise(words) if word == "--operation"]
    return [MissingRight(option, words[words.index(option) + 1], pattern, one) for one in operations]


@pytest.fixture
def shop(secured_kafka: SecuredBroker, api: Api, tmp_path: Path) -> RightsShop:
    """A shop of its own for each test."""
    return RightsShop(secured_kafka, api, tmp_path)


def test_each_command_works_with_just_these(shop: RightsShop) -> None:
    """Every command, also a named replay; the dead-letter topic is there, so no topic is created."""
    rights = [one for one in shop.printed() if one.operation != "Create"]
    shop.only(rights)
    code, said = shop.said("check")
    assert code == 0, said
    assert "lack" not in said
    shop.serve(shop.records)
    assert len(shop.letters) > 5
    bounds = ("--topic", shop.topic, "--from", "beginning", "--to", "end")
    for arguments in (
        ("replay", *bounds),
        ("replay", "--name", "again", *bounds),
        ("dead-letters", "list", "--topic", shop.topic),
        ("dead-letters", "redrive", "--topic", shop.topic),
        ("offsets", "show"),
        ("offsets", "set", "--topic", shop.topic, "--to", "beginning", "--yes"),
    ):
        code, said = shop.said(*arguments)
        assert code == 0, said


def test_receipts_are_written_and_read_with_just_these(shop: RightsShop) -> None:
    """With a receipts topic, too: the service writes it, `trace` and `audit` read it and what else they need."""
    shop.env["PINSTREAM_RECEIPTS_TOPIC"] = create_topic(shop.broker.plain)
    # Both who runs the service and who redrives write receipts.
    shop.only([*dict.fromkeys(one for one in shop.printed() if one.operation != "Create")])
    shop.serve(shop.records)
    code, said = shop.said("audit", "--since", "1h")
    assert (code, "It adds up" in said) == (0, True), said
    letter = shop.letters[0][1]
    code, said = shop.said("trace", f"{shop.topic}:{letter['partition']}:{letter['offset']}", "nothing")
    assert (code, f"letter {shop.letters_topic}:" in said, "not found" in said) == (1, True, True), said


class Checked(NamedTuple):
    """What `check` says without a right where the dead-letter topic exists and where it does not: exit code and words;
    no words: nothing is missing."""

    there: tuple[int, str]
    absent: tuple[int, str]


NOTHING = (0, "")
LACKS = "this user lacks {} on the {}: grant {} on it (`pinstream check --rights kafka-acls` prints how)"
NO_SETTINGS = (0, LACKS.format("DESCRIBE_CONFIGS", "topic {}", "DESCRIBE_CONFIGS"))
NO_WRITE = (1, LACKS.format("WRITE", "topic {}", "WRITE"))
# By resource and operation. `{}` is the resource's name.
CHECKED = {
    ("events", "Read"): Checked(*[(1, "the topic {} does not exist, or this user may not see it")] * 2),
    ("events", "DescribeConfigs"): Checked(NO_SETTINGS, NO_SETTINGS),
    ("letters", "Write"): Checked(NO_WRITE, NO_WRITE),
    # It is not needed where the topic exists.
    ("letters", "Create"): Checked(NOTHING, (1, LACKS.format("CREATE", "topic {}", "CREATE") + ", or create it")),
    ("letters", "DescribeConfigs"): Checked(NO_SETTINGS, NO_SETTINGS),
    # Not the service's right. Brokers do not say who may read a topic that does not exist.
    ("letters", "Read"): Checked((0, "`pinstream dead-letters` needs READ, which this user lacks, on {}"), NOTHING),
    ("group", "Read"): Checked(*[(1, "grant READ on it, or correct KAFKA_GROUP_ID")] * 2),
    ("replays", "Read"): Checked(*[(0, LACKS.format("READ", "groups {}…", "READ"))] * 2),
    # Not the service's right. It cannot be asked: taking the id over would show it, and end a redrive that runs.
    ("transactions", "Write"): Checked(NOTHING, NOTHING),
}  # fmt: skip


@pytest.mark.timeout(300)
@pytest.mark.parametrize("there", [True, pytest.param(False, marks=pytest.mark.slow("each right once more"))])
def test_check_names_each_right_that_is_missing(shop: RightsShop, there: bool) -> None:
    """`check` with all printed rights but one, each in turn: it names the one that is missing. It fails without a right
    that `run` needs, and creates nothing."""
    if not there:
        shop.delete_letters()
    names = {
        shop.topic: "events",
        shop.letters_topic: "letters",
        shop.group: "group",
        f"{shop.group}.replay.": "replays",
        f"pinstream.redrive.{shop.letters_topic}": "transactions",
    }
    rights = shop.printed()
    assert {(names[one.name], one.operation) for one in rights} == CHECKED.keys()
    shop.only(rights)
    code, complete = shop.said("check")
    assert code == 0, complete
    assert "lack" not in complete
    for missing in rights:
        shop.only([one for one in rights if one != missing])
        code, said = shop.said("check")
        checked = CHECKED[names[missing.name], missing.operation]
        expected, words = checked.there if there else checked.absent
        assert code == expected, (missing, said)
        assert words.format(missing.name) in said, (missing, said)
        assert words or "lack" not in said, (missing, said)
    assert there == (shop.letters_topic in shop.topics())


WITHOUT: dict[str, tuple[str, Callable[[RightsShop, MissingRight], bool], str]] = {
    "to run: Read on the topic": (
        "run", lambda s, r: r.name == s.topic and r.operation == "Read", "grant READ on it",
    ),
    "to run: Read on the group": ("run", lambda s, r: r.name == s.group, "grant READ on it, or correct KAFKA_GROUP_ID"),
    "to replay: Read on the topic": (
        "replay", lambda s, r: r.name == s.topic and r.operation == "Read", "this user may not see it",
    ),
    "to replay: Read on its group": ("replay", lambda s, r: r.name.endswith(".replay."), "grant READ on it"),
    "to redrive: Read on the dead letters": (
        "redrive", lambda s, r: r.name == s.letters_topic and r.operation == "Read", "grant READ on it",
    ),
    "to redrive: Write on the transactional id": (
        "redrive", lambda s, r: r.option == "--transactional-id", "grant WRITE on the transactional ids",
    ),
    "to redrive: Write on the dead letters": (
        "redrive", lambda s, r: r.name == s.letters_topic and r.operation == "Write", "grant WRITE on it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WITHOUT)
def test_the_message_names_the_missing_right(case: str, shop: RightsShop) -> None:
    """Each command without one of its rights names that right in one line."""
    what, is_missing, expected = WITHOUT[case]
    rights = shop.printed()
    if what == "redrive":
        shop.only(rights)
        shop.serve(shop.records)
    left = [one for one in rights if not is_missing(shop, one)]
    assert len(left) < len(rights)
    shop.only(left)
    bounds = ("--topic", shop.topic, "--from", "beginning", "--to", "end")
    arguments = {
        "run": ("run",),
        "replay": ("replay", "--name", "again", *bounds),
        "redrive": ("dead-letters", "redrive", "--topic", shop.topic),
    }[what]
    code, said = shop.said(*arguments)
    assert expected in said
    assert code != 0
    assert "Traceback" not in said


def test_a_topic_that_was_created_without_the_right_to_write(shop: RightsShop) -> None:
    """A user who may create the dead-letter topic, but not write to it or see it, creates it. The service says which
    right is missing, at most once a minute, and stores the letters once it has it."""
    shop.delete_letters()
    rights = shop.printed()
    shop.only(one for one in rights if one.name != shop.letters_topic or one.operation == "Create")
    with shop.letters_wait(f"grant WRITE on {shop.letters_topic}") as service:
        # The topic is there and was looked up again: its entry in the metadata has an error and no partitions.
        wait_for(lambda: shop.letters_topic in shop.topics(), "the topic")

        def failures() -> int:
            found: int = service.status()["counts"]["failures"]["dead_letter"]
            return found

        goal = failures() + 50
        service.until(lambda: failures() > goal, "more tries")
        reported = [line for line in service.log if line["event"] == "dead_letters_not_stored"]
        assert len(reported) == 1
        shop.grant(rights)


@pytest.mark.parametrize("somebody", ["grants the right", "creates the topic"])
def test_letters_are_stored_once_their_topic_is_there(shop: RightsShop, somebody: str) -> None:
    """Without the right to create the topic `check` says so, and the service waits; with it the topic is created. And
    on a cluster whose topics only its owners create, it is there at last."""
    shop.delete_letters()
    rights = shop.printed()
    shop.only(one for one in rights if one.operation != "Create")
    code, said = shop.said("check")
    assert (code, f"lacks CREATE on the topic {shop.letters_topic}" in said) == (1, True)
    with shop.letters_wait(f"grant CREATE on {shop.letters_topic}, or create it"):
        if somebody == "grants the right":
            shop.grant(rights)
        else:
            create_topic(shop.kafka, 1, shop.letters_topic)
