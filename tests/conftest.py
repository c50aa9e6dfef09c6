"""What all tests share."""

from __future__ import annotations

import torch

# Small tensors: more threads only wait for each other, the more so beside other processes.
torch.set_num_threads(1)
