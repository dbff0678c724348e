"""``pinstream replay``: take a bounded part of topics through the pipeline of ``pinstream run``.

`command` goes from the options to the exit code. `options` reads the command line and selects events by it, `plan` asks
the brokers what that is and says what could surprise, `stand_ins` are what the service drives instead of the real
things. `bounded_run` runs it until its source has ended and shows the progress, `outcome` says how every record ended.
"""
