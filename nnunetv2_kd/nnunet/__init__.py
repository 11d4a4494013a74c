"""Everything that knows nnU-Net's files: model folders and their names, plans, splits, datasets, checkpoints, JSON, and
writing whole or not at all."""
