"""Values that a mapping computes: how a mapping writes them, their functions, and phone numbers of the record's
country."""
