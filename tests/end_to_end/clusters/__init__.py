"""The commands against clusters with other habits: old brokers, racks, quotas, codecs, topics that must be there."""
