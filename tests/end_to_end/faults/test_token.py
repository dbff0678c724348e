"""A refused token halts the account and loses nothing (docs/why.md): it recovers by itself, or the process ends
with 3."""

from __future__ import annotations

import os
from pathlib import Path

from consumer.demo.faults import Chance
from consumer.engine.model import Disposition
from tests.end_to_end.api import Api
from tests.end_to_end.processes import ACCOUNT, TOKEN, Process, last_error, run_environment
from tests.end_to_end.records import (
    ENCODER,
    PARTITIONS,
    commerce_event,
    committed_offsets,
    generated,
    new_group,
    new_topic,
    records_on,
    write_events,
    write_generated,
)
from tests.support.kafka.harness import Kafka, produce

OTHER_ACCOUNT = "549755885176"


def test_wrong_token_halts_then_gives_up(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Halted: ready no more; when patience is over one clear line and exit code 3. Committed is what was settled before
    the first event that has to be sent, no record more: with the right token all of them are delivered, once."""
    topic, group = new_topic(kafka), new_group()
    filtered = list(range(PARTITIONS))
    for partition, count in enumerate(filtered):
        events = [
            *(commerce_event(f"cart-{partition}-{one}", event_type="cart_viewed") for one in range(count)),
            *(commerce_event(f"sold-{partition}-{one}") for one in range(20)),
            # Settled, and not to be committed: it lies behind what is open.
            commerce_event(f"later-{partition}", event_type="cart_viewed"),
        ]
        produce(kafka, topic, map(ENCODER.encode, events), partition=partition)
    sold = 20 * PARTITIONS
    env = run_environment(
        tmp_path, kafka, topic, group, api.url,
        PINTEREST_ACCESS_TOKEN="pina_wrong_token_5up3rs3cr3t", PINSTREAM_HALT_PATIENCE="5s",
    )  # fmt: skip
    api.set_faults(echo=True)
    with Process(tmp_path, "run", env=env) as process:
        process.until(lambda: process.status()["destination"]["state"] == "halted", "the halt")
        assert process.get("/readyz")[0] == 503
        ledger = process.ledger()
        assert (ledger["delivered"], ledger["dead_lettered"]) == (0, 0)
        assert process.wait() == 3
    error = last_error(process.stderr)
    assert "PINTEREST_ACCESS_TOKEN" in error
    assert "401" in error
    assert "5up3rs3cr3t" not in process.stderr + process.stdout
    assert api.counts().accepted_events == 0
    assert records_on(kafka, f"{topic}.dead-letters") == 0
    assert committed_offsets(kafka, group, topic) == filtered
    right = {**env, "PINTEREST_ACCESS_TOKEN": TOKEN}
    with Process(tmp_path, "run", env=right) as process:
        process.until(lambda: api.counts().distinct_event_ids == sold, "all that was sold")
        # The carts behind them are in the map beside the offset: they are not read as new ones again.
        ledger = process.until_settled(sold)
        assert process.stop()[0] == 0
    assert ledger["delivered"] == sold
    assert set(api.accepted().values()) == {1}
    assert committed_offsets(kafka, group, topic) == [count + 21 for count in filtered]


def test_a_new_token_file_heals_without_a_restart(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """The mounted secret is replaced during the halt: all events are delivered, once, by the same process."""
    topic, group = new_topic(kafka), new_group()
    generator, events = generated(300)
    write_generated(kafka, topic, events)
    secret = tmp_path / "token"
    secret.write_text("pina_yesterdays\n")
    env = run_environment(tmp_path, kafka, topic, group, api.url)
    del env["PINTEREST_ACCESS_TOKEN"]
    env["PINTEREST_ACCESS_TOKEN_FILE"] = str(secret)
    with Process(tmp_path, "run", env=env) as process:
        process.until(lambda: process.status()["destination"]["state"] == "halted", "the halt")
        assert api.counts().accepted_events == 0
        (tmp_path / "new").write_text(TOKEN + "\n")
        os.replace(tmp_path / "new", secret)
        ledger = process.until_settled(len(events))
        assert ledger["delivered"] == generator.tally[Disposition.DELIVERED]
        assert process.status()["destination"]["state"] == "open"
        assert process.stop()[0] == 0
    assert set(api.accepted().values()) == {1}
    assert sum(committed_offsets(kafka, group, topic)) == len(events)


def test_a_spell_of_refusals_heals_by_itself(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """The platform refuses a good token for a while: probes notice when it accepts it again; no event becomes a
    dead letter."""
    topic, group = new_topic(kafka), new_group()
    generator, events = generated(500)
    write_generated(kafka, topic, events)
    api.set_faults(unauthorised=Chance(first=2))
    env = run_environment(tmp_path, kafka, topic, group, api.url)
    with Process(tmp_path, "run", env=env) as process:
        process.until(lambda: process.status()["destination"]["state"] == "halted", "the halt")
        ledger = process.until_settled(len(events))
        assert process.stop()[0] == 0
    assert ledger["delivered"] == generator.tally[Disposition.DELIVERED] == api.counts().distinct_event_ids
    assert ledger["dead_lettered"] == 0


def test_each_account_for_itself(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Each event goes to the account that it names; an account that answers 403 does not stop the other; an
    unknown account's event is refused."""
    topic, group = new_topic(kafka), new_group()
    main = [commerce_event(f"main-{number}") for number in range(40)]
    other = [commerce_event(f"other-{number}", ad_account_id=OTHER_ACCOUNT) for number in range(40)]
    stranger = commerce_event("stranger", ad_account_id="111")
    mixed = [one for pair in zip(main, other, strict=True) for one in pair]
    write_events(kafka, topic, [*mixed, stranger])
    api.set_faults(forbidden_accounts=frozenset({OTHER_ACCOUNT}))
    env = run_environment(
        tmp_path, kafka, topic, group, api.url, PINTEREST_EXTRA_AD_ACCOUNT_IDS=OTHER_ACCOUNT
    )
    with Process(tmp_path, "run", env=env) as process:
        process.until(lambda: api.counts().accepted_events == 40, "the other account's neighbour")
        assert set(api.counts().accepted_by_account) == {ACCOUNT}
        states = {one["account"]: one["state"] for one in process.status()["destination"]["accounts"]}
        assert states == {ACCOUNT: "open", OTHER_ACCOUNT: "halted"}
        api.set_faults()
        ledger = process.until_settled(81)
        assert process.stop()[0] == 0
    assert (ledger["delivered"], ledger["dead_lettered"]) == (80, 1)
    assert api.counts().accepted_by_account == {ACCOUNT: 40, OTHER_ACCOUNT: 40}
    assert all(event.startswith("other-") == (account == OTHER_ACCOUNT) for account, event in api.pairs())


def test_a_token_for_each_account(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """One account's refused token halts that account alone; a new token in its file ends the halt, without a
    restart."""
    topic, group = new_topic(kafka), new_group()
    write_events(
        kafka, topic, (commerce_event(f"other-{number}", ad_account_id=OTHER_ACCOUNT) for number in range(40))
    )
    # As Kubernetes mounts a Secret: its files are links through a link that is swapped.
    folder, wrong = tmp_path / "tokens", "pina_yesterdays_5up3rs3cr3t"
    for version, token in (("..1", wrong), ("..2", TOKEN)):
        (folder / version).mkdir(parents=True)
        (folder / version / ACCOUNT).write_text(TOKEN + "\n")
        (folder / version / OTHER_ACCOUNT).write_text(token + "\n")
    (folder / "..data").symlink_to("..1")
    for account in (ACCOUNT, OTHER_ACCOUNT):
        (folder / account).symlink_to(f"..data/{account}")
    env = run_environment(
        tmp_path, kafka, topic, group, api.url, PINTEREST_EXTRA_AD_ACCOUNT_IDS=OTHER_ACCOUNT
    )
    del env["PINTEREST_ACCESS_TOKEN"]
    env["PINTEREST_ACCESS_TOKEN_FILE"] = str(folder)
    api.set_faults(echo=True)

    def states(process: Process) -> dict[str, str]:
        return {one["account"]: one["state"] for one in process.status()["destination"]["accounts"]}

    with Process(tmp_path, "run", env=env) as process:
        process.until(lambda: states(process).get(OTHER_ACCOUNT) == "halted", "the halt")
        # Written after the halt: intake goes on.
        write_events(kafka, topic, (commerce_event(f"main-{number}") for number in range(40)))
        process.until(lambda: api.counts().accepted_events == 40, "the other account's neighbour")
        assert states(process) == {ACCOUNT: "open", OTHER_ACCOUNT: "halted"}
        assert process.get("/readyz")[0] == 200
        (folder / "next").symlink_to("..2")
        (folder / "next").replace(folder / "..data")
        ledger = process.until_settled(80)
        assert states(process) == {ACCOUNT: "open", OTHER_ACCOUNT: "open"}
        (folder / OTHER_ACCOUNT).unlink()
        write_events(kafka, topic, [commerce_event("last", ad_account_id=OTHER_ACCOUNT)])
        assert process.until_settled(81)["delivered"] == 81
        assert str(folder / OTHER_ACCOUNT) in process.until_logged("token_trouble")["text"]
        assert process.stop()[0] == 0
        assert "5up3rs3cr3t" not in process.stderr
        assert TOKEN not in process.stderr
    assert (ledger["delivered"], ledger["dead_lettered"]) == (80, 0)
    assert set(api.accepted().values()) == {1}


def test_a_halted_account_does_not_starve_the_others(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """While one account is halted, later events of another are still fetched and delivered."""
    topic, group = new_topic(kafka), new_group()
    write_events(kafka, topic, [commerce_event("halting", ad_account_id=OTHER_ACCOUNT)])
    api.set_faults(forbidden_accounts=frozenset({OTHER_ACCOUNT}))
    env = run_environment(
        tmp_path, kafka, topic, group, api.url, PINTEREST_EXTRA_AD_ACCOUNT_IDS=OTHER_ACCOUNT
    )
    with Process(tmp_path, "run", env=env) as process:
        process.until(lambda: process.status()["destination"]["accounts"], "the account")
        process.until(lambda: process.status()["destination"]["accounts"][0]["state"] == "halted", "the halt")
        write_events(kafka, topic, [commerce_event(f"later-{number}") for number in range(10)])
        process.until(lambda: api.counts().accepted_events == 10, "what came later")
