"""From a commerce event to a conversion event, as the mapping says.

Reading order: `mapping` (what the advertiser wrote), `targets` and `rules` (what Pinterest takes), `converter`.
"""
