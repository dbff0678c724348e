"""What is shown of the engine: `statistics` is the snapshot that page, metrics and tests read.

`counters`, `coverage` and `freshness` count; `windows` keeps their last hour and day; `definitions` says what each
figure is, with its name and unit. `Pipeline.statistics` takes the snapshot.
"""
