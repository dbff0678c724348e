"""A refused token halts the account and loses nothing (docs/why.md): it recovers by itself, or the process ends
with 3."""

from __future__ import annotations

import os
from pathlib import Path

from tests.end_to_end.processes import ACCOUNT, TOKEN, Process, last_error
from tests.end_to_end.records import ENCODER, PARTITIONS, commerce_event, committed_offsets, records_on
from tests.end_to_end.shop import NewShop, Shop
from tests.support.kafka.harness import produce

OTHER_ACCOUNT = "549755885176"
TWO_ACCOUNTS = {"PINTEREST_EXTRA_AD_ACCOUNT_IDS": OTHER_ACCOUNT}


def states(process: Process) -> dict[str, str]:
    """The state of each account."""
    return {one["account"]: one["state"] for one in process.status()["destination"]["accounts"]}


def until_halted(process: Process, account: str = ACCOUNT) -> None:
    """Wait until this account is halted."""
    process.until(lambda: states(process).get(account) == "halted", "the halt")


def test_wrong_token_halts_then_gives_up(new_shop: NewShop) -> None:
    """Halted: ready no more; when patience is over one clear line and exit code 3. Committed is what was settled before
    the first event that has to be sent, no record more: with the right token all of them are delivered, once."""
    shop = new_shop(PINTEREST_ACCESS_TOKEN="pina_wrong_token_5up3rs3cr3t", PINSTREAM_HALT_PATIENCE="5s")
    filtered = list(range(PARTITIONS))
    for partition, count in enumerate(filtered):
        events = [
            *(commerce_event(f"cart-{partition}-{one}", event_type="cart_viewed") for one in range(count)),
            *(commerce_event(f"sold-{partition}-{one}") for one in range(20)),
            # Settled, and not to be committed: it lies behind what is open.
            commerce_event(f"later-{partition}", event_type="cart_viewed"),
        ]
        produce(shop.kafka, shop.topic, map(ENCODER.encode, events), partition=partition)
    sold = 20 * PARTITIONS
    shop.api.set_faults(echo=True)
    with shop.run() as process:
        until_halted(process)
        assert process.get("/readyz")[0] == 503
        ledger = process.ledger()
        assert (ledger["delivered"], ledger["dead_lettered"]) == (0, 0)
        assert process.wait() == 3
    error = last_error(process.stderr)
    assert "PINTEREST_ACCESS_TOKEN" in error
    assert "401" in error
    assert "5up3rs3cr3t" not in process.stderr + process.stdout
    assert shop.api.counts().accepted_events == 0
    assert records_on(shop.kafka, f"{shop.topic}.dead-letters") == 0
    assert committed_offsets(shop.kafka, shop.group, shop.topic) == filtered
    with shop.run(PINTEREST_ACCESS_TOKEN=TOKEN) as process:
        process.until(lambda: shop.api.counts().distinct_event_ids == sold, "all that was sold")
        # The carts behind them are in the map beside the offset: they are not read as new ones again.
        assert process.until_settled(sold)["delivered"] == sold
    assert set(shop.api.accepted().values()) == {1}
    assert committed_offsets(shop.kafka, shop.group, shop.topic) == [count + 21 for count in filtered]


def test_a_new_token_file_heals_without_a_restart(shop: Shop, tmp_path: Path) -> None:
    """The mounted secret is replaced during the halt: all events are delivered, once, by the same process."""
    shop.generate(300)
    secret = tmp_path / "token"
    secret.write_text("pina_yesterdays\n")
    del shop.env["PINTEREST_ACCESS_TOKEN"]
    with shop.run(PINTEREST_ACCESS_TOKEN_FILE=str(secret)) as process:
        until_halted(process)
        assert shop.api.counts().accepted_events == 0
        (tmp_path / "new").write_text(TOKEN + "\n")
        os.replace(tmp_path / "new", secret)
        process.until_settled(300)
        assert states(process) == {ACCOUNT: "open"}
    shop.check_sent_once()
    assert shop.committed == 300


def test_a_token_for_each_account(new_shop: NewShop, tmp_path: Path) -> None:
    """One account's refused token halts that account alone; a new token in its file ends the halt, without a
    restart."""
    shop = new_shop(**TWO_ACCOUNTS)
    shop.write_orders(40, "other", ad_account_id=OTHER_ACCOUNT)
    # As Kubernetes mounts a Secret: its files are links through a link that is swapped.
    folder, wrong = tmp_path / "tokens", "pina_yesterdays_5up3rs3cr3t"
    for version, token in (("..1", wrong), ("..2", TOKEN)):
        (folder / version).mkdir(parents=True)
        (folder / version / ACCOUNT).write_text(TOKEN + "\n")
        (folder / version / OTHER_ACCOUNT).write_text(token + "\n")
    (folder / "..data").symlink_to("..1")
    for account in (ACCOUNT, OTHER_ACCOUNT):
        (folder / account).symlink_to(f"..data/{account}")
    del shop.env["PINTEREST_ACCESS_TOKEN"]
    shop.api.set_faults(echo=True)
    with shop.run(PINTEREST_ACCESS_TOKEN_FILE=str(folder)) as process:
        until_halted(process, OTHER_ACCOUNT)
        shop.write_orders(40, "main")  # after the halt: intake goes on
        process.until(lambda: shop.api.counts().accepted_events == 40, "the other account's neighbour")
        assert states(process) == {ACCOUNT: "open", OTHER_ACCOUNT: "halted"}
        assert process.get("/readyz")[0] == 200
        (folder / "next").symlink_to("..2")
        (folder / "next").replace(folder / "..data")
        ledger = process.until_settled(80)
        assert states(process) == {ACCOUNT: "open", OTHER_ACCOUNT: "open"}
        (folder / OTHER_ACCOUNT).unlink()
        shop.write(commerce_event("last", ad_account_id=OTHER_ACCOUNT))
        assert process.until_settled(81)["delivered"] == 81
        assert str(folder / OTHER_ACCOUNT) in process.until_logged("token_trouble")["text"]
    assert not any(secret in process.stderr for secret in ("5up3rs3cr3t", TOKEN))
    assert (ledger["delivered"], ledger["dead_lettered"]) == (80, 0)
    assert set(shop.api.accepted().values()) == {1}
