"""Values that a mapping computes."""
