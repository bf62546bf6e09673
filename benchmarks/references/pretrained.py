"""Store the logits of timm 1.0 and torchvision 0.28 for weights that are drawn from their names.

    python benchmarks/references/pretrained.py        # writes tests/references/pretrained.npz

For each network: the names and shapes of its tensors, and its logits. Also timm's resized position embeddings, and a
small file that the package safetensors wrote. Needs torch, torchvision, timm and safetensors.
"""

import json
import sys

import numpy as np
import safetensors.torch
import timm
import torch
import torchvision
from network import FOLDER
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

sys.path.insert(0, str(FOLDER.parents[0] / "helpers"))
from torch_weights import draw, draw_images  # noqa: E402

VIT = {"num_classes": 5, "depth": 2, "num_heads": 3}
BLOCKS = torchvision.models.resnet

# name -> (network, side of its images). Large ones are for the tests marked `full`.
NETWORKS = {
    "torchvision_basic": lambda: (BLOCKS.ResNet(BLOCKS.BasicBlock, [2, 1, 1, 1], num_classes=5), 32),
    "timm_bottleneck": lambda: (
        timm.models.ResNet(timm.models.resnet.Bottleneck, [1, 2, 1, 1], num_classes=5),
        32,
    ),
    "timm_vit": lambda: (VisionTransformer(img_size=32, patch_size=8, embed_dim=24, **VIT), 32),
    "torchvision_vit": lambda: (
        torchvision.models.VisionTransformer(32, 8, 2, 3, hidden_dim=24, mlp_dim=96, num_classes=5),
        32,
    ),
    "full/torchvision_resnet18": lambda: (torchvision.models.resnet18(), 64),
    "full/timm_resnet34": lambda: (timm.create_model("resnet34"), 64),
    "full/torchvision_resnet50": lambda: (torchvision.models.resnet50(), 64),
    "full/timm_resnet50": lambda: (timm.create_model("resnet50"), 64),
    "full/timm_vit_ti": lambda: (timm.create_model("vit_tiny_patch16_224"), 224),
    "full/timm_vit_s": lambda: (timm.create_model("vit_small_patch16_224"), 224),
    "full/torchvision_vgg16_bn": lambda: (torchvision.models.vgg16_bn(), 224),
    "full/timm_vgg16_bn": lambda: (timm.create_model("vgg16_bn"), 224),
}


def shapes_of(network: torch.nn.Module) -> dict[str, list[int]]:
    """Return the shapes of a network's tensors by name."""
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def filled(network: torch.nn.Module) -> torch.nn.Module:
    """Return a network with the drawn weights, in evaluation mode."""
    weights = draw(shapes_of(network))
    network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    return network.eval()


def tensor_of(images: np.ndarray) -> torch.Tensor:
    """Return images `[N, H, W, C]` as PyTorch takes them."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def results() -> dict[str, np.ndarray]:
    """Return `<network>/shapes`, JSON, and `<network>/logits [2, K]`, and the other arrays."""
    found = {}
    with torch.no_grad():
        for name, create in NETWORKS.items():
            network, side = create()
            found[f"{name}/shapes"] = np.array(json.dumps(shapes_of(network)))
            found[f"{name}/logits"] = filled(network)(tensor_of(draw_images(2, side))).numpy()
            print(name, found[f"{name}/logits"].std())
        vgg = filled(torchvision.models.vgg16_bn())
        found["vgg16_bn/features"] = vgg.features(tensor_of(draw_images(2, 32))).mean((2, 3)).numpy()

        # A grid of 4×4 patches becomes one of 6×3, and the network is used at that size.
        trained = filled(VisionTransformer(img_size=32, patch_size=8, embed_dim=24, **VIT))
        other = VisionTransformer(img_size=(48, 24), patch_size=8, embed_dim=24, **VIT).eval()
        positions = resample_abs_pos_embed(trained.pos_embed, (6, 3))
        other.load_state_dict(trained.state_dict() | {"pos_embed": positions})
        found["resized/positions"] = positions.numpy()
        found["resized/logits"] = other(tensor_of(draw_images(2, 48, 24))).numpy()

    tensors = {
        "float32": torch.arange(6.0).reshape(2, 3) / 7,
        "half": torch.arange(4.0).to(torch.float16) / 7,
        "brain": torch.arange(4.0).to(torch.bfloat16) / 7,
        "long": torch.tensor([3, -4]),
        "scalar": torch.tensor(5),
    }
    found["safetensors/bytes"] = np.frombuffer(safetensors.torch.save(tensors, {"format": "pt"}), np.uint8)
    found |= {f"safetensors/{name}": tensor.float().numpy() for name, tensor in tensors.items()}
    return found


if __name__ == "__main__":
    np.savez_compressed(FOLDER / "pretrained.npz", **results())
