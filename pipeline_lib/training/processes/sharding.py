"""Weights spread over processes by PyTorch's FSDP2, for models that do not fit one GPU.

One idea: one module spans a whole forward pass, reference, decoder and output layer, and FSDP takes that as the
root. What is outside the layers (embedding, norm, output layer) belongs to the root, is gathered once for the pass
and seen whole by whoever calls the decoder or the output layer inside; each layer is gathered when it is called.
Gathers then do not depend on the number of chunks in which logits are computed, which differs between
processes, and tied embeddings stay one weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer


class _ForwardPass(nn.Module):
    """Calls a function; the modules whose weights it needs are held as children."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, run: Callable[[], Any]) -> Any:
        return run()


def shard(models: Iterable[nn.Module], mesh: DeviceMesh) -> nn.Module:
    """Leaves each process of `mesh` with its part of every weight, on the mesh's device.

    Gradients become sums over the processes, not means: the loss is divided by the counts of the whole update.
    Every process must then run the same number of forward and backward passes.

    Returns:
        What calls a function in which the models may be used.
    """
    forward_pass = _ForwardPass(models)
    for module in forward_pass.modules():
        if isinstance(module, GradientCheckpointingLayer):  # transformers' class of decoder layers
            fully_shard(module, mesh=mesh)
    fully_shard(forward_pass, mesh=mesh)
    for module in forward_pass.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
    return forward_pass


def give_weights_back(forward_pass: nn.Module) -> None:
    """Leaves each process with its part again, after a pass that no backward pass follows.

    FSDP waits for that one with the root's weights; kept over such a pass, they lost a part of the next gradients.
    """
    for module in forward_pass.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def part_like(tensor: Tensor, other: Tensor) -> Tensor:
    """What this process holds of `tensor` where it is spread as `other` is; `tensor` itself where that is whole."""
    if not isinstance(other, DTensor):
        return tensor
    there = tensor.to(other.device, other.dtype)
    return distribute_tensor(there, other.device_mesh, other.placements, src_data_rank=None)


def whole_tensors(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The tensors on the CPU, put together from all processes, each of which must call this.

    Args:
        tensors: by name; one that stands there twice, as tied weights do, does so in the result.
        keep: False gives {}: only the process that writes needs the memory.
    """
    found: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in found:
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            found[id(tensor)] = full.detach().cpu().contiguous() if keep else torch.empty(0)
    return {name: found[id(tensor)] for name, tensor in tensors.items()} if keep else {}
