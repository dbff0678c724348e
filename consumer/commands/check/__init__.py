"""``pinstream check``: is this configuration fit to run?

`command` goes through the questions and prints the table; `local`, `kafka` and `api` ask them: of this machine, of the
brokers, of the Conversions API. `rows` is what an answer looks like.
"""
