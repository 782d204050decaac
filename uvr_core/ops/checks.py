"""Shapes that the operators ask for: a ``ValueError`` names the argument, what was expected and what came."""

from __future__ import annotations

from torch import Tensor


def check_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Queries (B, H, Sq, D), keys and values (B, H, Sk, D) of one call."""
    check_tokens("q", q)
    check_tokens("k", k)
    if (k.shape[0], k.shape[1], k.shape[3]) != (q.shape[0], q.shape[1], q.shape[3]):
        raise ValueError(f"k: expected ({q.shape[0]}, {q.shape[1]}, Sk, {q.shape[3]}) as q has it, got {described(k)}")
    check_shape("v", v, tuple(k.shape))


def check_tokens(name: str, x: Tensor) -> None:
    """Four dimensions: (B, H, tokens, D)."""
    if x.dim() != 4:
        raise ValueError(f"{name}: expected (B, H, tokens, D), got {described(x)}")


def check_shape(name: str, x: Tensor, expected: tuple[int, ...]) -> None:
    """Exactly this shape."""
    if tuple(x.shape) != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {described(x)}")


def described(x: Tensor) -> str:
    """Shape and dtype, for messages."""
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
