"""SMORMS3, whose averaging window and step size follow each parameter's gradient; lower bounds.

Weights of Dalian layers must not become negative. SMORMS3 has that in its step; any other
optimizer gets it by a hook::

    SMORMS3(parameter_groups(model), lr=5e-3)

    optimizer = torch.optim.Adam(model.parameters())
    keep_non_negative(optimizer, model)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fastlif import optim_kernels

__all__ = ["SMORMS3", "keep_non_negative", "parameter_groups"]


def parameter_groups(model: nn.Module, **options: Any) -> list[dict[str, Any]]:
    """Parameter groups of a model for an optimizer, with the bound of its Dalian weights.

    model: any module. Those of its modules that have a method `non_negative_parameters`, as the
        Dalian layers do, give the parameters of the second group, whose `minimum` is 0.0. SMORMS3
        keeps to it; other optimizers ignore it and need `keep_non_negative`.
    options: for both groups, such as lr.

    Returns one or two groups, none of them empty.
    """
    bounded = _non_negative(model)
    ids = {id(parameter) for parameter in bounded}
    free = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    groups: list[dict[str, Any]] = []
    if free:
        groups.append({"params": free, **options})
    if bounded:
        groups.append({"params": bounded, **options, "minimum": 0.0})
    return groups


def keep_non_negative(optimizer: Optimizer, model: nn.Module) -> RemovableHandle:
    """Set negative Dalian weights of the model to 0 after every step of an optimizer of torch.

    Nothing waits for the device, so that a step can be part of a CUDA graph. The state of the
    optimizer is not touched, and saving or loading state dicts does not matter; but torch drops
    hooks when an optimizer itself is copied or pickled: call this again for the copy. (SMORMS3 with
    `parameter_groups` needs no hook and keeps the bound.)

    Returns a handle, whose `remove()` ends it. Models without such weights are left as they are.
    """

    def clamp(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        weights = _non_negative(model)
        if weights:
            with torch.no_grad():
                torch._foreach_clamp_min_(weights, 0.0)

    return optimizer.register_step_post_hook(clamp)


def _non_negative(model: nn.Module) -> list[Tensor]:
    """The parameters of a model that must not become negative, each once."""
    found: dict[int, Tensor] = {}
    for module in model.modules():
        own: Callable[[], list[Tensor]] | None = getattr(module, "non_negative_parameters", None)
        if own is not None:
            found.update((id(weight), weight) for weight in own())
    return list(found.values())


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
        parameter  = max(parameter, minimum)                      if there is a minimum

    All state is on the device and nothing waits for it, so a step can be part of a CUDA graph. One
    kernel updates all contiguous float32 (or float64) parameters of the groups that agree in all
    but lr; without the CUDA kernels, but with Triton, each takes a launch. What is left, such as
    parameters of other dtypes, is updated with `torch._foreach_*`, a dozen launches.

    Args:
        params: parameters or parameter groups, as for every torch optimizer. `lr`, `eps`,
            `maximize` and `minimum` can be set per group.
        lr: largest step size (eta in eq 33). A tensor of one element on the device of the
            parameters is only read there, so it can change between replays of a CUDA graph.
        eps: keeps a parameter that never had a gradient from dividing by zero.
        maximize: go up the gradient instead of down.
        minimum: parameters that fall below it are set to it after every step; 0.0 keeps the
            weights of a Dalian network from changing sign. None: no bound.

    Raises:
        ValueError: `lr` or `eps` is not finite and positive, `minimum` is not finite, or a tensor
            `lr` has more than one element.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]],
        lr: float | Tensor = 5e-3,
        eps: float = 1e-16,
        *,
        maximize: bool = False,
        minimum: float | None = None,
    ) -> None:
        defaults = {"lr": lr, "eps": eps, "maximize": maximize, "minimum": minimum}
        super().__init__(params, defaults | {"capturable": True})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; what it does not set is as in the constructor. Raises as that does."""
        options = self.defaults | param_group
        for name in ("lr", "eps"):
            number = options[name]
            if isinstance(number, Tensor):
                if number.numel() != 1:
                    raise ValueError(
                        f"{name} must have one element, got shape {tuple(number.shape)}"
                    )
            elif not (math.isfinite(number) and number > 0):
                raise ValueError(f"{name} must be finite and > 0, got {number}")
        minimum = options["minimum"]
        if minimum is not None and not math.isfinite(minimum):
            raise ValueError(f"minimum must be finite or None, got {minimum}")
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # saved before there was such an option
            group.setdefault("minimum", None)
            group.setdefault("capturable", True)

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
        # Groups that differ in lr alone, such as those of many networks, are updated at once.
        alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for group in self.param_groups:
            options = (group["eps"], group["maximize"], group["minimum"])
            alike.setdefault(options, []).append(group)
        for groups in alike.values():
            self._step_groups(groups)
        return loss

    def _step_groups(self, groups: list[dict[str, Any]]) -> None:
        """Of groups that differ in lr alone."""
        options = groups[0]
        at_once: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}  # by device and dtype
        others: list[tuple[Any, ...]] = []
        for group in groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if any(p.grad is not None and p.grad.is_sparse for p in parameters):
                raise RuntimeError("SMORMS3 needs dense gradients, got a sparse one")
            lr = group["lr"]
            if isinstance(lr, Tensor) and any(p.device != lr.device for p in parameters):
                lr = lr.item()
            for parameter in parameters:
                state = self._state_of(parameter)
                if optim_kernels.suits(parameter, state):
                    chosen = at_once.setdefault((parameter.device, parameter.dtype), [])
                    chosen.append((parameter, state, lr))
                elif _suits_triton(parameter, state):
                    from fastlif import optim_triton  # deferred: takes a second to import

                    optim_triton.update(parameter, state, options | {"lr": lr})
                else:
                    others.append((parameter, state, lr))
        for chosen in at_once.values():
            parameters, states, rates = _columns(chosen)
            optim_kernels.update(parameters, states, rates, options)
        if others:
            parameters, states, rates = _columns(others)
            _update_with_lists(parameters, states, rates, options)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            for name, start in (("g1", 0.0), ("g2", 0.0), ("m", 1.0)):
                state[name] = torch.full_like(
                    parameter, start, memory_format=torch.preserve_format, requires_grad=False
                )
        return state


def _columns(rows: list[tuple[Any, ...]]) -> list[list[Any]]:
    """Parameters, states and learning rates, from the three of each parameter."""
    return [list(column) for column in zip(*rows, strict=True)]


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _suits_triton(parameter: Tensor, state: dict[str, Tensor]) -> bool:
    return (
        not torch.compiler.is_compiling()  # which fuses better
        and parameter.device.type == "cuda"
        and parameter.dtype in (torch.float32, torch.float64)
        and all(tensor.is_contiguous() for tensor in (parameter, *state.values()))
        and _has_triton()
    )


def _update_with_lists(
    parameters: list[Tensor],
    states: list[dict[str, Tensor]],
    rates: list[float | Tensor],  # lr of each
    group: dict[str, Any],  # eps, maximize, minimum
) -> None:
    """One step of the parameters of groups with operations on lists of tensors."""
    gradients = [p.grad for p in parameters if p.grad is not None]  # none is: chosen so
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

    numbers = [lr for lr in rates if not isinstance(lr, Tensor)]
    if len(numbers) == len(rates):
        torch._foreach_clamp_max_(share, numbers)
    else:
        for tensor, lr in zip(share, rates, strict=True):
            # As a number it would have to be read from the device.
            tensor.clamp_(max=lr.view(()) if isinstance(lr, Tensor) else lr)
    torch._foreach_mul_(share, gradients)
    scale = torch._foreach_sqrt(g2)
    torch._foreach_add_(scale, group["eps"])
    torch._foreach_addcdiv_(parameters, share, scale, value=-1.0)
    if group["minimum"] is not None:
        torch._foreach_clamp_min_(parameters, group["minimum"])
