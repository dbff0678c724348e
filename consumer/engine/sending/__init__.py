"""Delivery of batches: `dispatcher` (what goes next), `queues`, `gate` (when a call may go) and `halts`."""
