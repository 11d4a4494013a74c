"""A trained model as a folder that predicts by itself, without torch and without nnU-Net."""
