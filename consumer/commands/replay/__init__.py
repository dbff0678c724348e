"""``pinstream replay``: take a bounded part of topics through the pipeline of ``pinstream run``.

`command` goes from the options to the exit code. `options` reads the command line and selects events by it, `parts`
chooses what the service reads and drives, and `engine` runs the service until its source has ended. `warnings` says
beforehand what could surprise, `watch` shows the progress, `outcome` prints the result.
"""
