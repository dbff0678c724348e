"""The group of the three commands."""

from __future__ import annotations

import click

from consumer.commands.dead_letters.listing import list_letters
from consumer.commands.dead_letters.redrive import redrive_letters
from consumer.commands.dead_letters.showing import show_letter


@click.group(name="dead-letters", commands=[list_letters, redrive_letters, show_letter])
def dead_letters() -> None:
    """List, show and redrive records that could not be delivered."""
