"""What the benchmarks of a GPU share."""
