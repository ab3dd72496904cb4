"""The operators `torch.ops.fused_mi`: schema, gradient, and the choice of the backend at run
time."""
