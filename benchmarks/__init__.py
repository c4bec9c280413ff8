"""vitlab beside its peers, measured on one machine: `python -m benchmarks.bench`, or `make bench`."""
