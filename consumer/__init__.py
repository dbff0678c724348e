"""pinstream: commerce events from Kafka to the Pinterest Conversions API, none lost, in time.

Start reading at docs/architecture.md; every event passes consumer/engine/pipeline.py.
"""

__version__ = "0.2.0"
