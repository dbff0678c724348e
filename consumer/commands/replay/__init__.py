"""``pinstream replay``: a bounded part of topics through the very same pipeline.

`command` goes from options to exit code, `parts` has what the service is given, `stand_ins` what takes the place of the
key store and of everything that writes, `engine` runs the service until its source has ended, `warnings` is what is
told before, `watch` what is shown meanwhile, `outcome` what is reported at the end.
"""
