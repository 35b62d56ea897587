"""Attention with q, k and v of its own, in the place of PyTorch's, so that its heads can be pruned."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..utils.errors import DiffESError


class SeparateAttention(nn.Module):
    """Attention of the same weights and results as an ``nn.MultiheadAttention``, which runs with fewer heads too.

    That one keeps q, k and v in one parameter, reads the weight of its output projection past that module, and takes
    the size of a head from the width of its input. Of this one, ``Heads("...", heads, ("q", "k", "v"), "out",
    counts=(("num_heads", 1),))`` is what is declared.

    Args:
        packed: in evaluation mode; its output projection is used on.

    Raises:
        DiffESError: it has keys or values of their own width, an added bias, or an added zero.
    """

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        odd = packed.in_proj_weight is None or packed.bias_k is not None or packed.add_zero_attn
        if odd:
            found, remedy = "keys of another width, add_bias_kv or add_zero_attn", "Write its attention out yourself."
            raise DiffESError("nn.MultiheadAttention", expected="q, k and v alike", found=found, remedy=remedy)
        self.num_heads, self.batch_first = packed.num_heads, False  # else PyTorch's own blocks would read past this one
        self._batched_first, biased = packed.batch_first, packed.in_proj_bias is not None
        weights = packed.in_proj_weight.detach().chunk(3)
        biases = packed.in_proj_bias.detach().chunk(3) if biased else (None,) * 3
        self.q, self.k, self.v = (_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))
        self.out = packed.out_proj
        self.train(packed.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """What ``nn.MultiheadAttention`` gives, without the weights of its attention.

        Raises:
            DiffESError: a mask of single samples or heads.
        """
        if key_padding_mask is not None or (attn_mask is not None and attn_mask.dim() > 2):
            expected, remedy = "a mask of (queries, keys) or none", "Write this attention out yourself."
            raise DiffESError("attention", expected=expected, found="one of single samples", remedy=remedy)
        swapped = not self._batched_first and query.dim() == 3
        q, k, v = (
            (part.transpose(0, 1) if swapped else part).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
            for part in (self.q(query), self.k(key), self.v(value))
        )
        mask = None if attn_mask is None or is_causal else attn_mask
        if mask is not None and not mask.is_floating_point():
            mask = mask.logical_not()  # there True leaves a key out, here it lets one in
        attended = scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal)
        joined = attended.transpose(-3, -2).flatten(-2)
        return self.out(joined.transpose(0, 1) if swapped else joined), None


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, weight.device, weight.dtype)
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return linear


def separate_attention(denoiser: nn.Module) -> tuple[str, ...]:
    """Put a :class:`SeparateAttention` in the place of every ``nn.MultiheadAttention`` of a trained denoiser.

    The denoiser's parameters have other names from then on, so its weights are loaded before. Returns the names of the
    modules, to be declared.
    """
    named = [(name, part) for name, part in denoiser.named_modules() if isinstance(part, nn.MultiheadAttention)]
    for name, part in named:
        denoiser.set_submodule(name, SeparateAttention(part))
    return tuple(name for name, _ in named)
