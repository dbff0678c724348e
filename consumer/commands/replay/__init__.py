"""``pinstream replay``: a bounded part of topics through the very same pipeline.

`command` goes from options to exit code, `engine` runs the service until its source has ended, `keys` and `dry` are
what stands in for the key store and for everything that writes, `outcome` is what is told at the end, `watch` what is
shown meanwhile.
"""
