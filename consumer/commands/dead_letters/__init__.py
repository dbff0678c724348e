"""``pinstream dead-letters``: list the letters on the dead-letter topics, show one in full, redrive them.

`command` groups the three commands. `options` has what selects letters, and `reading` finds the dead-letter topics and
reads them in two passes (marks, then letters). `listing` counts letters, `showing` shows one, and `payload` masks what
it holds.

In a redrive, `redrive` chooses letters and takes them through the pipeline, `marking` marks them as done, and `outcome`
prints how they ended.
"""
