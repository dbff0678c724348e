"""``pinstream dead-letters``: what lies on the dead-letter topics, one letter in full, and redriving letters.

`command` groups the three commands. `topics` finds the dead-letter topics that are asked for, `reading` reads them in
two passes (marks, letters), `listing` counts, `showing` shows one (`payload` masks it).

A redrive: `choosing` says which letters, `redrive` takes them through the pipeline, `marking` marks them as done,
`outcome` tells what became of them.
"""
