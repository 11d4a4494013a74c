"""A complete distillation on bundled real data."""
