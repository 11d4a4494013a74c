"""What trained models cost: time, memory, FLOPs."""
