"""The commands on other kinds of clusters: old brokers, racks, quotas, codecs, topics that are not created on
demand."""
