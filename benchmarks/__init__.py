"""Figures, and the scripts that make them: ``make bench``. Ratios within one run; the machine is shared and noisy."""
