"""Mean and variance of batch norm: joined from parts of a batch, and averaged over batches."""

from jaxtyping import Float
from torch import Tensor


def join(
    means: Float[Tensor, "parts channels"],
    variances: Float[Tensor, "parts channels"],
    weights: Float[Tensor, "parts 1"] | float,
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Mean and biased variance of all parts together (Chan et al. 1979).

    The difference of two sums of squares would lose digits.

    Args:
        means: mean of each part.
        variances: biased variance of each part.
        weights: share of each part in all values.
    """
    mean = (weights * means).sum(0)
    return mean, (weights * (variances + (means - mean).square())).sum(0)


def update(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Float[Tensor, " channels"],
    var: Float[Tensor, " channels"],
    count: float,
    momentum: float,
) -> None:
    """Move running statistics, if there are any, towards those of ``count`` values per channel, whose biased
    variance ``var`` is."""
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean), momentum)
        running_var.lerp_((var * (count / (count - 1))).to(running_var), momentum)
