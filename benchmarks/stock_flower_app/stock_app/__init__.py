"""Federated matrix factorisation as Flower's own examples write it: one user per node, plain torch, FedAvg."""
