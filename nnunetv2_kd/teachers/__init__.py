"""Teachers: find, check, load, freeze and run them. A teacher is one model, several combined, or a store."""
