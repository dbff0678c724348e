"""The group that all commands hang on."""

from __future__ import annotations

import click

from consumer import __version__
from consumer.commands.base import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pinstream")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
def main(debug: bool) -> None:
    """Commerce events from Kafka to the Pinterest Conversions API: none lost, in time."""
