"""``pinstream dead-letters``: list the letters on the dead-letter topics, show one in full, redrive them.

`command` groups the three commands. `options` has the filters that select letters, and `reading` finds the dead-letter
topics and reads them in two passes (marks, then letters). `listing` counts letters, `showing` shows one.

`redrive` chooses letters, takes them through the pipeline and marks them as done; `outcome` prints how they ended.
"""
