"""From a commerce event to a conversion event, by the mapping.

Reading order: `mapping` (what the advertiser wrote), `targets` and `rules` (what Pinterest takes), `converter`.
"""
