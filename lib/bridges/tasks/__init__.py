"""Small data sets made on the spot."""
