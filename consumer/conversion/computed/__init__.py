"""Values that a mapping computes: what it may say, the functions of that, and phone numbers of the record's country."""
