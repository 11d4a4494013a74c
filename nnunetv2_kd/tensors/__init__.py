"""Shared by methods and regions: checks that shapes agree, and sums over voxels block by block."""
