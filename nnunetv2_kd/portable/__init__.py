"""Export a trained model as a folder that predicts by itself, without torch and nnU-Net."""
