"""What is known of each record: its stage, its block, the ledger of its partition, and what may be committed."""
