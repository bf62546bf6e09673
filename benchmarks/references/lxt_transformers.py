"""Store the relevance of LXT 2.1 (with zennit 0.5.1) for a tiny vision transformer, and the transformer's weights.

    python benchmarks/references/lxt_transformers.py        # writes tests/references/lxt_transformers.npz

It needs torch, torchvision, lxt and zennit in an environment of their own. Two attributions are stored, both NHWC:

- "vit": LXT's recipe for torchvision's vision transformer, CP-LRP in the attention, and zennit's γ rule in the patch
  embedding and the dense layers outside of the attention, as in LXT's example;
- "attn_lrp": AttnLRP by LXT's own patches of LayerNorm, GELU and the attention, without γ.

Stabilisers are negligible, and the computation is in float64.
"""

import math

import numpy as np
import torch
import zennit.rules
from lxt.efficient import monkey_patch, monkey_patch_zennit
from lxt.efficient.patches import layer_norm_forward, wrap_attention_forward
from lxt.efficient.rules import identity_rule_implicit
from network import FOLDER
from torch import nn
from torchvision.models import vision_transformer
from zennit.composites import LayerMapComposite

SIDE, PATCH, WIDTH, HEADS, DEPTH, CLASSES = 8, 4, 8, 2, 2, 3
GAMMA = {nn.Conv2d: 0.25, nn.Linear: 0.05}


def transformer() -> vision_transformer.VisionTransformer:
    """Return torchvision's vision transformer with drawn weights."""
    network = vision_transformer.VisionTransformer(SIDE, PATCH, DEPTH, HEADS, WIDTH, 2 * WIDTH, num_classes=CLASSES)
    rng = np.random.default_rng(12)
    for name, parameter in network.named_parameters():
        drawn = rng.normal(size=parameter.shape) / math.sqrt(parameter[0].numel() if parameter.ndim > 1 else 4)
        is_scale = parameter.ndim == 1 and name.endswith("weight")
        parameter.data = torch.from_numpy((drawn + is_scale).astype(np.float32)).double()
        parameter.requires_grad = False
    return network.double().eval()


def variables(network: vision_transformer.VisionTransformer) -> dict[str, np.ndarray]:
    """Return the weights under the names, and in the shapes, of `sdecor.models.ViT`."""
    given = {name: value.numpy().astype(np.float32) for name, value in network.state_dict().items()}
    found = {
        "patches/kernel": given["conv_proj.weight"].transpose(2, 3, 1, 0),
        "patches/bias": given["conv_proj.bias"],
        "class_token": given["class_token"],
        "positions": given["encoder.pos_embedding"],
        "norm/scale": given["encoder.ln.weight"],
        "norm/bias": given["encoder.ln.bias"],
        "head/kernel": given["heads.head.weight"].T,
        "head/bias": given["heads.head.bias"],
    }
    for i in range(DEPTH):
        old, new, split = f"encoder.layers.encoder_layer_{i}", f"block{i + 1}", (HEADS, WIDTH // HEADS)
        for j in (1, 2):
            found[f"{new}/norm{j}/scale"] = given[f"{old}.ln_{j}.weight"]
            found[f"{new}/norm{j}/bias"] = given[f"{old}.ln_{j}.bias"]
            found[f"{new}/mlp{j}/kernel"] = given[f"{old}.mlp.{3 * (j - 1)}.weight"].T
            found[f"{new}/mlp{j}/bias"] = given[f"{old}.mlp.{3 * (j - 1)}.bias"]
        kernels = np.split(given[f"{old}.self_attention.in_proj_weight"], 3)
        biases = np.split(given[f"{old}.self_attention.in_proj_bias"], 3)
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            found[f"{new}/attention/{name}/kernel"] = kernel.T.reshape(WIDTH, *split)
            found[f"{new}/attention/{name}/bias"] = bias.reshape(split)
        found[f"{new}/attention/out/kernel"] = given[f"{old}.self_attention.out_proj.weight"].T.reshape(*split, WIDTH)
        found[f"{new}/attention/out/bias"] = given[f"{old}.self_attention.out_proj.bias"]
    return found


def attention(module, query, key, value):
    """Return softmax attention of `[N, H, T, D]`, in the form of the functions that LXT wraps."""
    return torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]), -1) @ value


def attn_lrp(network: vision_transformer.VisionTransformer, x: torch.Tensor) -> torch.Tensor:
    """Return the logits, with LXT's surrogates in the backward pass."""
    attend = wrap_attention_forward(attention)
    x = network.conv_proj(x).flatten(2).mT
    x = torch.cat([network.class_token.expand(len(x), -1, -1), x], 1) + network.encoder.pos_embedding
    for block in network.encoder.layers:
        y, weights = layer_norm_forward(block.ln_1, x), block.self_attention
        parts = (y @ weights.in_proj_weight.T + weights.in_proj_bias).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        y = attend(None, q, k, v).transpose(1, 2).flatten(2)
        x = x + (y @ weights.out_proj.weight.T + weights.out_proj.bias)
        first, activation, _, second, _ = block.mlp
        x = x + second(identity_rule_implicit(activation, first(layer_norm_forward(block.ln_2, x))))
    return network.heads(layer_norm_forward(network.encoder.ln, x)[:, 0])


def relevance(network, images: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """Return gradient × input of the targets' logits, `[N, H, W, C]`."""
    x = images.clone().requires_grad_()
    network(x)[torch.arange(len(x)), targets].sum().backward()
    return (x * x.grad).detach().numpy().transpose(0, 2, 3, 1)


def results() -> dict[str, np.ndarray]:
    network = transformer()
    images = np.random.default_rng(13).normal(size=(3, SIDE, SIDE, 3)).astype(np.float32)
    given = torch.from_numpy(images.transpose(0, 3, 1, 2)).double()
    targets = torch.tensor([0, 1, 2])
    found = variables(network) | {"images": images, "logits": network(given).numpy()}
    found["attn_lrp"] = relevance(lambda x: attn_lrp(network, x), given, targets)
    monkey_patch(vision_transformer)
    monkey_patch_zennit()
    rules = [(kind, zennit.rules.Gamma(gamma, stabilizer=1e-12)) for kind, gamma in GAMMA.items()]
    with LayerMapComposite(rules).context(network) as changed:
        found["vit"] = relevance(changed, given, targets)
    return {name: value.astype(np.float32) for name, value in found.items()}


if __name__ == "__main__":
    np.savez_compressed(FOLDER / "lxt_transformers.npz", **results())
