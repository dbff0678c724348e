"""What the demo and the tests need: a broker in the process, a sandbox of the API, a made-up shop.

Nothing that `run` needs imports it.
"""
