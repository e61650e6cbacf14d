"""All arithmetic of a run in float64, to tell rounding from a mistake; `config_file(..., imports=['in_double'])`."""

import torch

torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
