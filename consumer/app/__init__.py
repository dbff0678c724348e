"""The composition root: `building` builds the parts from the settings, `run` puts a member together and runs it.

`telemetry` exports traces and metrics if they are asked for. `ending` ends a service: by a signal and in order, or by
force if something hangs. `signals` turns SIGTERM and SIGINT into a stop of other commands. Commands and workers are
built from these.
"""
