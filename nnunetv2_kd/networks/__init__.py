"""For any network: building it, naming and tapping its stages, counting its cost, choosing how a CPU computes it."""
