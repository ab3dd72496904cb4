"""Good arguments of the public functions, by name."""

import fused_mi
import torch
from cases import MASK, MI_ARGUMENTS, mi_inputs

ENTROPY_ARGUMENTS = ["clean_embeddings", "transformed_embeddings", "means", "stds", "mask"]


def entropy_inputs(n=4, m=3, s=5, e=3, dtype=torch.float64, offset=0.0):
    """(clean, transformed, means, stds, mask), component_mask; N differs from M."""
    means, stds, component_mask, clean, _ = mi_inputs(m, s, e, dtype, 1, offset)
    _, _, mask, _, transformed = mi_inputs(n, s, e, dtype, 2, offset)
    return [clean, transformed, means, stds, mask], component_mask


def entropy_arguments():
    inputs, component_mask = entropy_inputs(dtype=torch.float32)
    return dict(zip(ENTROPY_ARGUMENTS, inputs, strict=True), component_mask=component_mask)


def distance_arguments():
    inputs = mi_inputs(dtype=torch.float32)
    return {"x": inputs[3], "y": inputs[4], "stds": inputs[1], "mask": inputs[MASK]}


def pairwise_arguments():
    arguments = entropy_arguments()
    return {
        "y": arguments["transformed_embeddings"],
        "centers": arguments["clean_embeddings"],
        "stds": arguments["stds"],
        "mask": arguments["mask"],
        "component_mask": arguments["component_mask"],
    }


def mi_arguments():
    return dict(zip(MI_ARGUMENTS, mi_inputs(dtype=torch.float32), strict=True))


FUNCTIONS = [
    (fused_mi.mutual_information_sub_batch, mi_arguments),
    (fused_mi.gaussian_mixture_entropy, entropy_arguments),
    (fused_mi.square_mahalanobis_distance, distance_arguments),
    (fused_mi.pairwise_square_mahalanobis_distance, pairwise_arguments),
]
