"""Predict with trained models, export them, and choose what they run in."""
