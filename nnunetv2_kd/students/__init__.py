"""Make students by writing smaller plans."""
