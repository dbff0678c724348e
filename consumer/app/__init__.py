"""The composition root: `building` builds the parts from the settings, `run` puts a member together and runs it.

`telemetry` exports traces and metrics if they are asked for. `signals` turns SIGTERM and SIGINT into a stop. Commands
and workers are built from these.
"""
