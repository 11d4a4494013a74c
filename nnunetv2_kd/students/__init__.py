"""Students: smaller plans."""
