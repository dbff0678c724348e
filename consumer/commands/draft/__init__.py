"""``pinstream draft``: a commented mapping, proposed from a schema and the values of a sample.

`command` reads and writes; the rest is without I/O: `vocabulary` knows what names mean, `leaves` what a schema and
values say of each path, `roles` which field a path may be, `proposing` chooses, `writing` makes the file.
"""
