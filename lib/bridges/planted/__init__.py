"""Healthy bridges and planted faults: what a check-up has to tell apart."""
