"""The policy under training and its frozen reference, whatever causal language model lies below.

One idea: the reference is the *previous iteration's policy*. In iteration 1 that is the base, so LoRA is
simply switched off; from iteration 2 on "adapter off" would be the wrong policy, so a frozen copy
of the previous adapter sits beside the trained one on the same base weights. Full fine-tuning keeps a
frozen copy of all weights.

Dropout is off, in the policy as in the reference: else the KL would not be 0 where they are equal.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from pipeline_lib.training.architectures.attention_masks import Visible, tree_masks
from pipeline_lib.training.architectures.output_layer import output_layer
from pipeline_lib.training.architectures.tree_attention import BLOCKED, cut_into_blocks
from pipeline_lib.training.batches.batching import PackedBatch
from pipeline_lib.training.processes.sharding import give_weights_back, shard, whole_tensors

TRAINED = "default"
REFERENCE = "reference"
NO_ROW_IS_TOO_LONG = 1 << 30
Outputs = TypeVar("Outputs")


class TrainedPolicy:
    """A causal language model with trainable weights and a reference to compare with.

    Args:
        model: the causal language model; with LoRA the one inside `adapters`.
        adapters: PEFT's wrapper; None when all weights are trained.
        has_previous: an adapter called ``reference`` is loaded.
        frozen: a frozen copy of `model`; only with full fine-tuning and where a reference is needed.
        dtype: what it computes in; bfloat16 by autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        adapters: PeftModel | None = None,
        has_previous: bool = False,
        frozen: nn.Module | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = cast(Any, model).eval()
        self.adapters = adapters
        self.frozen = None if frozen is None else cast(Any, frozen).eval()
        self._has_previous = has_previous
        self._forward_pass: nn.Module | None = None
        self.dtype = dtype

    def shard(self, mesh: DeviceMesh) -> None:
        """Spreads all weights over the mesh's processes; from now on they are whole inside `with_weights` only."""
        models = (self.adapters or self.model, self.frozen)
        self._forward_pass = shard([model for model in models if model is not None], mesh)

    def with_weights(self, run: Callable[[], Outputs]) -> Outputs:
        """What `run` returns, a tuple of tensors; it may use model, reference and output layers: one forward pass."""
        return run() if self._forward_pass is None else cast(Outputs, self._forward_pass(run))

    def without_gradients(self, run: Callable[[], Outputs]) -> Outputs:
        """What `run` returns of passes that no backward pass follows."""
        with torch.no_grad():
            found = run()
        if self._forward_pass is not None:
            give_weights_back(self._forward_pass)
        return found

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def layout(self) -> Any:
        """Configuration of the language model; of a wrapped one not that of what is around it."""
        return self.model.config.get_text_config()

    @property
    def head(self) -> nn.Module:
        """The output layer, hidden states to logits."""
        return output_layer(self.model)

    @property
    def reference_head(self) -> nn.Module:
        return self.head if self.frozen is None else output_layer(self.frozen)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name, in a fixed order."""
        owner = self.model if self.adapters is None else self.adapters
        return {
            name: parameter
            for name, parameter in owner.named_parameters()
            if (parameter.requires_grad if self.adapters is None else f".{TRAINED}." in name)
        }

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Bfloat16 arithmetic where the configuration asks for it; weights that are trained stay float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def hidden_states(self, batch: PackedBatch, visible: Visible) -> Tensor:
        """`[M, H]` hidden states that predict the batch's scored tokens, with gradient."""
        return self._run(self.model, batch, visible)

    def reference_hidden_states(self, batch: PackedBatch, visible: Visible) -> Tensor:
        """`[M, H]` the same under the reference, without gradient."""
        with torch.no_grad(), self.reference_active() as reference:
            return self._run(reference, batch, visible)

    @contextlib.contextmanager
    def reference_active(self) -> Iterator[Any]:
        """The reference as a causal language model, valid inside the ``with`` block."""
        if self.adapters is None:
            yield self.frozen
        elif not self._has_previous:
            with self.adapters.disable_adapter():
                yield self.model
        else:
            self.adapters.set_adapter(REFERENCE, inference_mode=True)
            try:
                yield self.model
            finally:
                self.adapters.set_adapter(TRAINED)

    @property
    def attends_by_blocks(self) -> bool:
        """Whether attention computes what tokens see and little more; else all pairs of a row."""
        return bool(self.model.config._attn_implementation == BLOCKED)

    @property
    def break_even_tokens(self) -> int:
        """Row length at which attention costs as much as all else, see `batching`; by blocks no row is too long."""
        return NO_ROW_IS_TOO_LONG if self.attends_by_blocks else 6 * int(self.layout.hidden_size)

    def visible(self, batch: PackedBatch, block_sizes: Sequence[int] | None = None) -> Visible:
        """What each kind of layer may see of the batch's trees, see `tree_masks` and `cut_into_blocks`."""
        blocks = cut_into_blocks(batch.subtree_ends, self.device, block_sizes) if self.attends_by_blocks else None
        return Visible(tree_masks(batch, self.layout, self.device, self.dtype, blocks), blocks)

    def save(self, output_dir: Path, *, base_model: str, write: bool = True) -> None:
        """Writes a PEFT adapter folder, or a model folder after full fine-tuning; equal weights give equal bytes.

        Where weights are spread over processes each of them calls this; all but one with `write` False.
        """
        if self.adapters is None:
            weights = self._whole_weights(write)
            if write:
                self.model.save_pretrained(output_dir, state_dict=weights)
            return
        state = get_peft_model_state_dict(self.adapters, adapter_name=TRAINED, save_embedding_layers=False)
        tensors = whole_tensors(dict(sorted(state.items())), keep=write)
        if not write:
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        save_file(tensors, output_dir / "adapter_model.safetensors", metadata={"format": "pt"})
        # PEFT writes its sets in hash order and adds a card; neither is the same twice.
        config = self.adapters.peft_config[TRAINED].to_dict()
        config |= {"base_model_name_or_path": base_model, "inference_mode": True}
        text = json.dumps(config, indent=2, sort_keys=True, default=lambda value: sorted(value))
        (output_dir / "adapter_config.json").write_text(text + "\n", encoding="utf-8")

    def _whole_weights(self, keep: bool) -> dict[str, Tensor] | None:
        """All weights and buffers of a model that is spread over processes; None where they are whole anyway."""
        if self._forward_pass is None:
            return None
        saved = self.model.state_dict().keys()
        named = (*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers())
        return whole_tensors({name: tensor for name, tensor in named if name in saved}, keep=keep)

    def _run(self, model: Any, batch: PackedBatch, visible: Visible) -> Tensor:
        with self.autocast():
            output = model.get_decoder()(
                input_ids=torch.from_numpy(batch.token_ids).to(self.device),
                position_ids=torch.from_numpy(batch.positions).to(self.device),
                attention_mask=visible.masks,
                use_cache=False,
                **({} if visible.blocks is None else {BLOCKED: visible.blocks}),
            )
        hidden: Tensor = output.last_hidden_state
        return hidden.flatten(0, 1).index_select(0, torch.from_numpy(batch.sources).to(self.device))
