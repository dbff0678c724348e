"""Kafka, by confluent-kafka (librdkafka): translate, try once within a time limit, decide nothing.

What is where. *Reading as a member of the group*: `source` is what the service drives; `member` is the same in the
consumer's own thread, which reaches the event loop by `hooks`; `starts` finds where a partition starts, `chunks` turns
messages into records, `commits` commits and leaves, `ends` knows how far the logs reach, `topic_ids` notices that a
topic was deleted and created again. *Reading outside of any group* (replay, dead letters): `bounded` reads ranges,
`ranges` finds their offsets, `replay_progress` keeps how far a named replay has come. *Writing*: `producer`,
`dead_letters`, and a redrive's `transactions` (`letters` is what a letter looks like). *Questions*: `cluster` (brokers,
topics, what partitions hold) and `groups`. *All of it*: `configuration` (librdkafka's properties, making clients) and
`trouble` (what an error means).

Each client has a thread of its own and looks like plain asyncio from outside. Nothing here decides: what a failure
means for the service is decided by the engine.
"""
