"""The soak (benchmarks/soak): its judgement on made-up curves, its records, and a short one for real."""
