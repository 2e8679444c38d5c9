"""Connectors between frozen models, the hosts they speak into, and the instruments that examine them."""
