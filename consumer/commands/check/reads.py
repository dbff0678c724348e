"""Questions to Pinterest about the ad accounts: does a tag fire, and are the advertiser's own events registered?

They need PINTEREST_READ_TOKEN. No answer makes a configuration unfit to run: events are delivered all the same. What
is not known is a skipped row, which says why.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from consumer.adapters.account_reads import AccountReads, NotKnown
from consumer.app.quality import account_reads
from consumer.commands.check.rows import CheckContext, Row, Severity, Skip, ok, warning
from consumer.commands.results import counted

# Seconds since a tag fired from which on it may be gone from the site.
_QUIET = 24 * 3600


async def known(found: CheckContext) -> Sequence[Row]:
    """What does Pinterest know of each account? A row for each tag, and one for the names in [own_events]."""
    reads, rows = account_reads(found.settings), list[Row]()
    if reads is None:
        raise Skip(
            "set PINTEREST_READ_TOKEN, a token with the scope ads:read, to see here whether tags fire and your own "
            "events are registered, and on the page what Pinterest sees of the events"
        )
    names = () if found.sections is None else found.sections.own_events
    try:
        for account in found.settings.pinterest.ad_account_ids:
            for question in (_tags(reads, account), _own_events(reads, account, names)):
                try:
                    answers = await question
                except NotKnown as error:
                    answers = [Row(Severity.SKIPPED, f"not known: {error}")]
                rows += [Row(verdict, f"{account}: {text}") for verdict, text in answers]
    finally:
        await reads.api.close()
    return rows


async def _tags(reads: AccountReads, account: str) -> Sequence[Row]:
    rows, now = [], time.time()
    for name, fired in await reads.tags(account):
        if fired is None:
            rows.append(warning(f"the tag {name!r} has never fired: see whether the site has it"))
        elif now - fired > _QUIET:
            days = counted(int((now - fired) / _QUIET), "day")
            rows.append(warning(f"the tag {name!r} fired last {days} ago: see whether the site still has it"))
        else:
            ago = counted(int(max(now - fired, 0) / 60), "minute")
            rows.append(ok(f"the tag {name!r} fired last {ago} ago"))
    return rows or [ok("no tag: web events reach Pinterest by the Conversions API alone")]


async def _own_events(reads: AccountReads, account: str, names: Sequence[str]) -> Sequence[Row]:
    if not names:
        return []
    registered = await reads.own_events(account)
    if missing := [name for name in names if name not in registered]:
        return [
            warning(
                f"not registered, so Pinterest labels these events Unknown: {', '.join(missing)}; register them in "
                "Events Manager, or correct [own_events] of the mapping"
            )
        ]
    return [ok(f"registered: {', '.join(names)}")]
