"""How fast mqkit is beside the bare driver and beside its peers. Run by `make bench`; README.md says how to read it."""
