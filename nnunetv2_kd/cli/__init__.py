"""The command ``nnUNetv2_kd`` with its sub-commands, one module each."""
