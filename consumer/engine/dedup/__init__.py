"""No event is sent twice: claims on keys, look-ups in the key store, and the lease of a shared one."""
