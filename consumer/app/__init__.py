"""The composition root: `building` builds the parts from the settings, `run` puts a member together and runs it.

`telemetry` exports traces and metrics if they are asked for. `ending` ends a process: by a signal and in order, a
service by force if something hangs. Commands and workers are built from these.
"""
