"""Records of others' serialisers, whose schemas are in a real schema registry (Apicurio)."""
