"""Pure functions that measure a bridge: tensors in, a small frozen dataclass out."""
