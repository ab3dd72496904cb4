"""What losses of several passes or ranks cannot do, said where it is tried."""

import torch


def refuse_second_derivative() -> None:
    """
    Raises:
        RuntimeError: the gradient is to be differentiated; as a constant it would be so in silence.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "fused_mi: losses of several ranks or micro-batches have no second derivative"
        )
