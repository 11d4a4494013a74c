"""The main job on bundled real data."""
