"""Prediction with trained models, and the device it runs on."""
