"""Benchmarks that anyone can run: `python -m benchmarks.<name> --sizes small|full --out <file>.json`."""
