"""What methods and regions share: shapes that must agree, and sums over voxels block by block."""
