"""HTTP for people and probes: the page, /status, /metrics, /healthz, /readyz. It only reads."""
