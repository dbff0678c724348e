"""``pinstream explain``: the outcome of each record of a file, and why, without network or state.

`command` has the options. `explaining` makes the line of each record, and compares those of two mappings; `expecting`
compares the lines with expected ones; `showing` prints them for people, and the summary; `watching` does so at each
save.
"""
