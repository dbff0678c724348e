"""What people and probes see over HTTP: the page, /status, /metrics, /healthz, /readyz. It reads, never changes."""
