"""``pinstream dead-letters``: what lies on the dead-letter topics, one letter in full, and putting letters back.

`topics` says which dead-letter topics are meant, `reading` reads them in two passes (marks, then letters), `listing`
counts, `showing` shows one (`payload` masks it), `redrive` puts back, `outcome` tells what became of it.
"""
