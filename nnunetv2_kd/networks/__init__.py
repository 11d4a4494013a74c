"""What is done to any network: built, its stages named and tapped, its cost counted, how it computes on a CPU."""
