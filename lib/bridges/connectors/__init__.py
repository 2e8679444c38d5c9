"""Modules that turn one model's output into another model's input."""
