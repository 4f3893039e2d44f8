"""Kernels that train several times faster on a CPU, with the same results as the ones they stand in for.

Belongs here: exact stand-ins, switched on by `train.py` on CPUs only. Sampling never needs them.
"""

from typing import Any

import torch
import torch.nn.functional as F


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> torch.Tensor:
    """Scaled dot-product attention by plain matrix products; the fused backward is slow for short sequences."""
    if is_causal or dropout_p:
        raise NotImplementedError("this stand-in serves attention without dropout or causal masks")
    weights = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    if attn_mask is not None:
        weights = weights + attn_mask
    return weights.softmax(-1, dtype=weights.dtype) @ value


def spatial_norm(
    self: Any, f: torch.Tensor, zq: torch.Tensor, conv_cache: Any = None
) -> tuple[torch.Tensor, dict[str, Any]]:
    """CogVideoXSpatialNorm3D.forward with its 1x1x1 convolutions before the upsampling: they commute."""
    del conv_cache
    weight = torch.cat([self.conv_y.conv.weight, self.conv_b.conv.weight])
    bias = torch.cat([self.conv_y.conv.bias, self.conv_b.conv.bias])
    modulation = F.conv3d(zq, weight, bias)
    if f.shape[2] > 1 and f.shape[2] % 2 == 1:
        first = F.interpolate(modulation[:, :, :1], size=f[:, :, :1].shape[-3:])
        rest = F.interpolate(modulation[:, :, 1:], size=f[:, :, 1:].shape[-3:])
        modulation = torch.cat([first, rest], dim=2)
    else:
        modulation = F.interpolate(modulation, size=f.shape[-3:])
    scale, shift = modulation.chunk(2, dim=1)
    return torch.addcmul(shift, self.norm_layer(f).to(shift.dtype), scale), {}


def orthogonal(
    gradient: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Muon's Newton-Schulz iteration in the precision of the gradient, (rows, columns) to the same.

    torch's own goes through bfloat16, which takes twice as long where a CPU has no AMX.
    """
    a, b, c = coefficients
    tall = gradient.size(0) > gradient.size(1)
    wide = gradient.T if tall else gradient
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if tall else wide


def switch_on(full_precision: bool = False) -> None:
    """Use the stand-ins in this process; that of Muon's iteration only where training is in full precision."""
    from diffusers.models.autoencoders import autoencoder_kl_cogvideox

    setattr(F, "scaled_dot_product_attention", attention)  # noqa: B010 (a function of another signature)
    autoencoder_kl_cogvideox.CogVideoXSpatialNorm3D.forward = spatial_norm
    if full_precision:
        from torch.optim import _muon

        setattr(_muon, "_zeropower_via_newtonschulz", orthogonal)  # noqa: B010 (its arguments have other names)
