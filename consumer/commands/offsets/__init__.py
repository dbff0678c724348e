"""``pinstream offsets``: show, set and export what the group has committed."""
