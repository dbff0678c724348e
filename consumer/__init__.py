"""pinstream: commerce events from Kafka to the Pinterest Conversions API, none lost, in time.

Start reading at docs/architecture.md; every event passes consumer/engine/pipeline.py.
"""

__version__ = "0.3.0"

GARBAGE = 50_000, 20, 50
"""Thresholds of the garbage collector. What a start makes stays, and an event's objects hold no cycles: with the
default of 700, the collector walks them over and over and finds nothing, for a tenth of the time of both."""
