"""nnU-Net's files: model folders and their names, plans, splits, datasets, checkpoints, JSON, atomic
writing, and locks."""
