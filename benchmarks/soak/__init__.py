"""The soak: millions of events through one `pinstream run`, watched from outside. ``make soak``.

Theory of operation. A real Kafka, a real process, a sink that misbehaves now and then, and a producer that keeps
ahead. Once a second the process is looked at as an operator would: its memory by the system, its counts by
``/status``, its state folder by the disk. What was seen is drawn, and judged: memory flat once warm, open events and
bytes within the budget at every sample, the key store no larger than its window, the counts adding up, nothing lost.

`records` what is produced · `producer`, `sink` both ends · `process` the one in between · `watch` one sample of it ·
`run` all of it together · `verdicts` pure judgement · `curves` text plots · `report` what is printed.
"""
