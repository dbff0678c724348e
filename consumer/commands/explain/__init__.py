"""``pinstream explain``: the outcome of each record of a file, and why, without network or state.

`command` has the options and makes the line of each record; `expecting` compares the lines with expected ones;
`showing` prints them for people, and the summary.
"""
