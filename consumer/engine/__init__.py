"""The synchronous engine: it takes in what happened and returns what to do next. No I/O, no clock, no environment.

Reading order: `messages` (all that passes between engine and shell), `pipeline` (which part gets each input), `block`
and `ledger` (the state of each record), `intake`, `sending`. These six modules show how a record travels and why none
is lost; docs/architecture.md says where to go on.
"""
