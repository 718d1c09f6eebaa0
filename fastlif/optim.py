"""SMORMS3, an optimizer whose averaging window and step size follow each parameter's gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["SMORMS3"]


class SMORMS3(Optimizer):
    """SMORMS3 (Funk 2015), as in Rossbroich et al. 2022, eqs 30-33.

    Per element, with gradient g and the running averages g1, g2 and window length m (at the
    start 0, 0 and 1)::

        r  = 1 / (m + 1)
        g1 = (1 - r) g1 + r g                                     (30)
        g2 = (1 - r) g2 + r g^2                                   (31)
        s  = g1^2 / (g2 + eps)            in [0, 1]: share of the gradient that is not noise
        m  = 1 + m (1 - s)                                        (32)
        parameter -= g min(lr, s) / (sqrt(g2) + eps)              (33)

    The update is done for all parameters of a group at once with `torch._foreach_*`: a dozen
    launches however many tensors there are, none of which waits for the device.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: largest step size (eta in eq 33).
        eps: keeps a parameter that never had a gradient from dividing by zero.
        maximize: go up the gradient instead of down.

    Raises:
        ValueError: `lr` or `eps` is not finite and positive.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]],
        lr: float = 5e-3,
        eps: float = 1e-16,
        *,
        maximize: bool = False,
    ) -> None:
        for name, number in (("lr", lr), ("eps", eps)):
            if not (math.isfinite(number) and number > 0):
                raise ValueError(f"{name} must be finite and > 0, got {number}")
        super().__init__(params, {"lr": lr, "eps": eps, "maximize": maximize})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; return what `closure` returns.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        gradients = [p.grad for p in parameters]
        if any(gradient.is_sparse for gradient in gradients):
            raise RuntimeError("SMORMS3 needs dense gradients, got a sparse one")
        states = [self._state_of(p) for p in parameters]
        g1 = [state["g1"] for state in states]
        g2 = [state["g2"] for state in states]
        window = [state["m"] for state in states]
        if group["maximize"]:
            gradients = list(torch._foreach_neg(gradients))

        rate = torch._foreach_add(window, 1)
        torch._foreach_reciprocal_(rate)
        torch._foreach_lerp_(g1, gradients, rate)
        torch._foreach_lerp_(g2, torch._foreach_mul(gradients, gradients), rate)

        share = torch._foreach_mul(g1, g1)
        torch._foreach_div_(share, torch._foreach_add(g2, group["eps"]))
        # m <- 1 + m (1 - share), written as 1 + m - m share to save a launch.
        torch._foreach_addcmul_(window, window, share, value=-1.0)
        torch._foreach_add_(window, 1)

        torch._foreach_clamp_max_(share, group["lr"])
        torch._foreach_mul_(share, gradients)
        scale = torch._foreach_sqrt(g2)
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_addcdiv_(parameters, share, scale, value=-1.0)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            for name, start in (("g1", 0.0), ("g2", 0.0), ("m", 1.0)):
                state[name] = torch.full_like(
                    parameter, start, memory_format=torch.preserve_format, requires_grad=False
                )
        return state
