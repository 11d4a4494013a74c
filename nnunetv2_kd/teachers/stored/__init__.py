"""A teacher's class probabilities, computed once and stored beside nnU-Net's preprocessed data."""
