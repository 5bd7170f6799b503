"""How many floating-point operations a pass needs, and how many a second the device can do at best.

Counted are the multiplications and additions of the products of matrices, two for each weight and token; norms,
activations and the softmax are left out.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch

from fl.prefix_tree import PrefixTree


@dataclass(frozen=True)
class PassCost:
    """What decides the cost of a pass through a causal language model with LoRA adapters or without."""

    layer_weights: int
    """Of all matrices in the layers, adapters left out."""
    adapter_weights: int
    head_weights: int
    """Of the matrix from hidden states to logits."""
    attention_width: int
    """Query heads x head width, over all layers: what a query multiplies with each key."""

    def forward(self, tokens: int, keys: int, asked: int) -> int:
        """A forward pass over `tokens` tokens that attend to `keys` keys in all, with logits for `asked` of them."""
        products = (self.layer_weights + self.adapter_weights) * tokens + self.head_weights * asked
        return 2 * products + 4 * self.attention_width * keys

    def step(self, tokens: int, keys: int, asked: int) -> int:
        """Forward and backward passes where only the adapters are trained.

        Frozen matrices pass gradients on (as much again as forward) and have none of their own; adapters have both.
        The first layer's few products that need no gradient are counted as if they did.
        """
        own = 2 * self.adapter_weights * tokens + 4 * self.attention_width * keys
        return 2 * self.forward(tokens, keys, asked) + own


def pass_cost(model: Any) -> PassCost:  # noqa: ANN401 (any transformers or PEFT causal model)
    """The cost of a pass through `model`, from its own layers."""
    head = model.get_output_embeddings()
    sizes = {"layer": 0, "adapter": 0}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            sizes["adapter" if ".lora_" in name else "layer"] += module.weight.numel()
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.num_attention_heads * width * config.num_hidden_layers
    return PassCost(sizes["layer"], sizes["adapter"], head.weight.numel(), attention)


def tree_amounts(tree: PrefixTree) -> tuple[int, int, int]:
    """Tokens, keys attended to and tokens asked for logits, when each distinct prefix is computed once."""
    return tree.distinct_tokens, int((tree.depths[tree.is_inner] + 1).sum()), tree.distinct_tokens


def product_rate(size: int) -> float:
    """Operations a second in one product of two square float32 matrices, with as many threads as torch uses."""
    one, other = torch.rand(size, size), torch.rand(size, size)
    out = torch.empty(size, size)
    started = time.perf_counter()
    torch.mm(one, other, out=out)
    return 2 * size**3 / (time.perf_counter() - started)
