"""The composition root: `building` makes the parts from the settings, `run` puts a member together and runs it.

`tracing` wraps what a member drives if traces are asked for; `signals` is how a process is asked to stop. Commands and
workers are made of these.
"""
