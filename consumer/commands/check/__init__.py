"""``pinstream check``: is this configuration fit to run?

`command` asks all questions and prints the table. `local` has the questions to this machine, `kafka` those to the
brokers, `registry` those to the schema registry, `api` those to the Conversions API. `rows` defines what a question
answers.
"""
