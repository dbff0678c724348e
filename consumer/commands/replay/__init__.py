"""``pinstream replay``: take a bounded part of topics through the pipeline of ``pinstream run``.

`command` goes from the options to the exit code. `options` reads the command line and selects events by it, `plan` asks
the brokers for its ranges and makes the warnings, `fakes` has what the service uses in place of the real key
store, API and dead letters, `against` compares with another mapping. `bounded_run` runs the service until its source
has ended and shows the progress, `outcome` reports how every record ended.
"""
