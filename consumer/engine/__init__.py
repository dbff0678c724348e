"""The synchronous engine: it takes in what happened and returns what to do next. No I/O, no clock, no environment.

Reading order: `messages` (all that passes between engine and shell), `records.stages` and `steps` (a record's way, on
one page), `pipeline` (what each input concerns), `records.block` and `records.ledger` (the state of each record). These
show how a record travels and why none is lost; docs/architecture.md says where to go on.
"""
