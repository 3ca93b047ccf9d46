"""Applications over mqkit, each executed by the tests."""
