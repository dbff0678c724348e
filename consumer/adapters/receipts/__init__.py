"""The receipts topic: what became of each record, as a record of its own."""
