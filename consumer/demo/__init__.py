"""What the demo and the tests need: a broker in the process, a stand-in for the API, a made-up shop.

Nothing that `run` needs imports it.
"""
