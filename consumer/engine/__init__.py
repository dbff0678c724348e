"""The synchronous core: told what happened, it says what to do next. No I/O, no clock, no environment.

Reading order: `model` (the nouns), `interface` (what passes between core and shell), `pipeline` (the one
control flow), then its leaves.
"""
