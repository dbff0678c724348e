"""The composition root: builds the parts from settings and runs them. The only package that knows every other.

One module a command (`run`, `demo`, `explain`, `check`, `produce`, `sandbox`); `building` makes what several need.
"""
