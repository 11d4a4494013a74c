"""Prediction with a trained nnU-Net, without torch and without nnU-Net.

These files are copied as they are into the folder that ``nnUNetv2_kd export --format portable`` writes. They import
nothing but Python, numpy, scipy, one reader of images and one runtime of networks.
"""
