"""What is shown of the engine: `statistics` is the snapshot that page, metrics and tests read.

`counters`, `delivered` and `latency` count; `waits` says what open records wait for; `definitions` says what each
figure is, with its name and unit. `Pipeline.statistics` takes the snapshot.
"""
