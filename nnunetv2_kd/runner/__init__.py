"""Prediction with a trained nnU-Net, without torch and without nnU-Net.

``nnUNetv2_kd export --format portable`` copies these files unchanged into the folder that it writes. They import only
Python's standard library, numpy, scipy, one reader of images and one runtime for networks.
"""
