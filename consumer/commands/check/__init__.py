"""``pinstream check``: is this configuration fit to run?

`command` asks all questions and prints the table. `local` has the questions to this machine, `kafka` those to the
brokers and the registry, `writers` those about what is in the registry, `api` those to the Conversions API. `rows`
defines questions and answers.
"""
