"""Kafka, by confluent-kafka (librdkafka): translate, try once within a time limit, decide nothing.

What is where. *Reading as a member of the group*: `source` is what the service drives; `member` is the same in the
consumer's own thread, which reaches the event loop by `hooks`; `starts` finds where a partition starts, `chunks` turns
messages into records, `held` knows which partitions are read and from where, `watch` how far the logs reach and who is
in the group, `commits` commits and leaves, `topic_ids` notices that a topic was deleted and created again. *Reading
outside of any group* (replay, dead letters): `bounded` reads ranges, `ranges` finds their offsets, `replay_progress`
keeps how far a named replay has come. *Writing*: `producers`, `dead_letters` (the form of letters: `letters`).
*Questions*: `cluster` (brokers, topics, offsets of partitions) and `groups`. *For all of these*: `configuration`
(librdkafka's properties, making clients) and `error` (what an error means).

Each client has a thread of its own, behind plain asyncio methods. The engine decides what a failure means for the
service.
"""
