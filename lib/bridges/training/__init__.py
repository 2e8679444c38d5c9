"""Fitting connectors and hosts."""
