"""Tests of weights in timm's and torchvision's names: the logits are those that the libraries gave."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_network import stored
from torch_weights import draw, draw_images, write_safetensors

from sdecor.core import safetensors
from sdecor.models import ResNet, Tap, ViT, Whitened, create_model, load_pretrained
from sdecor.models.pretrained import _after_map, fit_variables, resize_positions

VIT = ViT(num_classes=5, width=24, depth=2, heads=3, patch_size=8)
RESNET = ResNet(num_classes=5, blocks=(2, 1, 1, 1))
NETWORKS = {
    "torchvision_basic": (RESNET, 32),
    "timm_bottleneck": (ResNet(num_classes=5, blocks=(1, 2, 1, 1), bottleneck=True), 32),
    "timm_vit": (VIT, 32),
    "torchvision_vit": (VIT, 32),
}
FULL = {
    "torchvision_resnet18": ("resnet18", 64, {}),
    "timm_resnet34": ("resnet34", 64, {}),
    "torchvision_resnet50": ("resnet50", 64, {}),
    "timm_resnet50": ("resnet50", 64, {}),
    "timm_vit_ti": ("vit_ti", 224, {}),
    "timm_vit_s": ("vit_s", 224, {}),
    "torchvision_vgg16_bn": ("vgg16", 224, {"head": "imagenet"}),
    "timm_vgg16_bn": ("vgg16", 224, {"head": "imagenet"}),
}


def tensors_of(name):
    return draw(json.loads(str(stored("pretrained")[f"{name}/shapes"])))


def zeros(model, *image_shape):
    """Return variables of a model, all zero: every one that should come from the file must."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image_shape))))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def apply(model, variables, images):
    return jax.jit(lambda variables, images: model.apply(variables, images))(variables, images)


def check_logits(model, name, side, tmp_path):
    """Assert that the logits are the library's, up to rounding."""
    file = write_safetensors(tmp_path / "weights.safetensors", tensors_of(name))
    variables, notes = load_pretrained(model, zeros(model, side, side, 3), file)
    assert notes == []
    logits, _ = apply(model, variables, draw_images(2, side))
    expected = stored("pretrained")[f"{name}/logits"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4 * expected.std())


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_the_library_s(name, tmp_path):
    check_logits(*NETWORKS[name][:1], name, NETWORKS[name][1], tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", FULL)
def test_logits_of_whole_networks_are_the_library_s(name, tmp_path):
    model, side, options = FULL[name]
    check_logits(create_model(model, num_classes=1000, **options), f"full/{name}", side, tmp_path)


@pytest.mark.full
def test_convolutions_of_vgg16_are_the_library_s_below_the_small_head(tmp_path):
    file = write_safetensors(tmp_path / "weights.safetensors", tensors_of("full/torchvision_vgg16_bn"))
    model = create_model("vgg16", num_classes=10)
    variables, notes = load_pretrained(model, zeros(model, 32, 32, 3), file)
    assert ["hidden layers" in note or "head starts anew" in note for note in notes] == [True, True]
    expected = stored("pretrained")["vgg16_bn/features"]
    np.testing.assert_allclose(
        apply(model, variables, draw_images(2, 32))[1], expected, rtol=0, atol=2e-4 * expected.std()
    )


def test_a_dense_layer_after_a_map_keeps_its_product():
    rng = np.random.default_rng(0)
    maps, kernel = rng.normal(size=(2, 512, 3, 3)), rng.normal(size=(7, 512 * 9))
    (converted,) = _after_map(kernel)
    np.testing.assert_allclose(maps.transpose(0, 2, 3, 1).reshape(2, -1) @ converted, maps.reshape(2, -1) @ kernel.T)
    np.testing.assert_array_equal(_after_map(kernel.reshape(7, 512, 3, 3))[0], converted)  # timm's convolution


def test_position_embeddings_are_resized_as_timm_does(tmp_path):
    expected = stored("pretrained")
    tensors = tensors_of("timm_vit")
    resized = resize_positions(tensors["pos_embed"], (6, 3))
    np.testing.assert_allclose(resized, expected["resized/positions"], atol=1e-5)
    file = write_safetensors(tmp_path / "weights.safetensors", tensors)
    variables, notes = load_pretrained(VIT, zeros(VIT, 48, 24, 3), file, image_shape=(48, 24, 3))
    assert notes == ["the position embeddings are resized to 6×3 patches"]
    logits, _ = apply(VIT, variables, draw_images(2, 48, 24))
    np.testing.assert_allclose(logits, expected["resized/logits"], atol=1e-4)
    with pytest.raises(ValueError, match="18 patches are not those of a square grid: give image_shape"):
        load_pretrained(VIT, zeros(VIT, 48, 24, 3), file)


def test_the_head_starts_anew_where_the_classes_differ(tmp_path):
    file = write_safetensors(tmp_path / "weights.safetensors", tensors_of("timm_vit"))
    model = VIT.clone(num_classes=3)
    drawn = zeros(model, 32, 32, 3)
    drawn["params"]["head"]["bias"] += 4.0
    variables, notes = load_pretrained(model, drawn, file)
    assert notes == ["the head starts anew: it is 24×3 here and has 24×5 there"]
    np.testing.assert_array_equal(variables["params"]["head"]["bias"], [4.0, 4.0, 4.0])
    same, _ = load_pretrained(VIT, zeros(VIT, 32, 32, 3), file)
    del same["params"]["head"], variables["params"]["head"]
    jax.tree.map(np.testing.assert_array_equal, variables, same)


@pytest.mark.parametrize(
    "wrap", [lambda net: Tap(net, ("block1/mlp1",)), lambda net: Whitened(net)], ids=["Tap", "Whitened"]
)
def test_wrapped_networks_get_the_same_weights(wrap, tmp_path):
    file = write_safetensors(tmp_path / "weights.safetensors", tensors_of("timm_vit"))
    alone, _ = load_pretrained(VIT, zeros(VIT, 32, 32, 3), file)
    wrapped, notes = load_pretrained(wrap(VIT), zeros(wrap(VIT), 32, 32, 3), file)
    assert notes == []
    jax.tree.map(np.testing.assert_array_equal, wrapped["params"], alone["params"])


def refused(tmp_path, model, tensors, image_shape=(32, 32, 3)):
    """Return the message with which a network refuses tensors."""
    file = write_safetensors(tmp_path / "weights.safetensors", tensors)
    with pytest.raises(ValueError) as error:
        load_pretrained(model, zeros(model, *image_shape), file)
    return str(error.value)


def test_a_file_that_does_not_fit_is_refused_with_its_first_wrong_tensor(tmp_path):
    tensors = tensors_of("torchvision_basic")
    without = {name: tensor for name, tensor in tensors.items() if name != "layer2.0.bn1.running_var"}
    message = refused(tmp_path, RESNET, without)
    assert "it has nothing for stage2/block1/norm1/var of shape 128" in message
    message = refused(tmp_path, RESNET, tensors | {"layer1.0.se.fc.weight": np.zeros((3, 2), np.float32)})
    assert "tensor 'layer1.0.se.fc.weight' of shape 3×2 has no place in it" in message
    message = refused(tmp_path, RESNET.clone(blocks=(1, 1, 1, 1)), tensors)
    assert "a ResNet of 1-1-1-1 basic blocks" in message and "stage1/block2/" in message and "no place" in message
    message = refused(tmp_path, RESNET.clone(stem="cifar"), tensors)
    assert "conv_stem/kernel has shape 7×7×3×64 in the file, 3×3×3×64 here; use model.stem = 'imagenet'" in message
    message = refused(tmp_path, RESNET, tensors, (32, 32, 1))
    assert "use images of 3 channels (data.channels)" in message
    message = refused(tmp_path, VIT.clone(patch_size=4), tensors_of("timm_vit"))
    assert "use model.patch_size = 8" in message
    message = refused(tmp_path, create_model("vgg16", num_classes=5), {"features.0.weight": np.zeros(3, np.float32)})
    assert "without BatchNorm" in message and "vgg16_bn" in message
    message = refused(tmp_path, create_model("cnn", num_classes=5), tensors)
    assert "weights can be loaded for resnet18" in message
    registers = tensors_of("timm_vit") | {"reg_token": np.zeros((1, 4, 24), np.float32)}
    assert "tensor 'reg_token' of shape 1×4×24 has no place" in refused(tmp_path, VIT, registers)
    patches = tensors_of("timm_vit")
    patches["pos_embed"] = patches["pos_embed"][:, 1:]
    assert "a class token and a square grid" in refused(tmp_path, VIT, patches)
    (tmp_path / "resnet18.pth").touch()
    with pytest.raises(ValueError, match="no .safetensors file: write a PyTorch model"):
        load_pretrained(RESNET, zeros(RESNET, 32, 32, 3), tmp_path / "resnet18.pth")


def test_only_shapes_of_the_variables_are_used():
    loaded = {("params", "head", "kernel"): np.ones((2, 3), np.float64)}
    like = {"params": {"head": {"kernel": jax.ShapeDtypeStruct((2, 3), np.float32)}}}
    fitted, _ = fit_variables(RESNET, like, loaded, source="x")
    assert fitted["params", "head", "kernel"].dtype == np.float32


def test_reader_reads_what_the_package_wrote(tmp_path):
    expected = stored("pretrained")
    path = tmp_path / "small.safetensors"
    path.write_bytes(expected["safetensors/bytes"].tobytes())
    found = safetensors.read(path)
    assert {name: str(array.dtype) for name, array in found.items()} == {
        "float32": "float32", "half": "float16", "brain": "bfloat16", "long": "int64", "scalar": "int64",
    }  # fmt: skip
    for name, array in found.items():
        np.testing.assert_array_equal(array.astype(np.float32), expected[f"safetensors/{name}"])


def test_damaged_files_are_refused(tmp_path):
    content, path = stored("pretrained")["safetensors/bytes"].tobytes(), tmp_path / "small.safetensors"
    with pytest.raises(ValueError, match="there is no such file"):
        safetensors.read(path)
    for damaged in (content[:-2], content[:30], b"", b"PK\x03\x04" + bytes(60), content.replace(b"F32", b"F33")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="small.safetensors is no safetensors file, or is damaged"):
            safetensors.read(path)
