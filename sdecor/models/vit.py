"""Vision transformers with a class token and learned position embeddings."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdecor.core.checks import check_choice, check_range
from sdecor.models.layers import REMATS, check_image_size, check_positive, classifier, rematerialised


def patch_product(images: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """Convolve `images [N, H, W, C]` with a kernel whose stride is its own size, as one matrix product: `[N, h, w, D]`.

    Values are those of `lax.conv_general_dilated`. XLA's gradient of that to the images, which the saliency needs, is a
    convolution over a map widened by zeros, by the TPU compiler's estimate a seventh of a ViT-S step. Here it is one
    more matrix product.
    """
    n, height, width, channels = images.shape
    rows, columns = kernel.shape[:2]
    patches = images.reshape(n, height // rows, rows, width // columns, columns, channels)
    return jnp.einsum("nhpwqc,pqcd->nhwd", patches, kernel)


class EncoderBlock(nn.Module):
    """A transformer block: self-attention, then a perceptron, each after LayerNorm and added to tokens `[N, T, D]`."""

    heads: int
    mlp_ratio: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        width = tokens.shape[-1]
        xavier = nn.initializers.xavier_uniform()
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm1")(tokens)
        x = nn.MultiHeadDotProductAttention(
            self.heads, dtype=self.dtype, kernel_init=xavier, force_fp32_for_softmax=True, name="attention"
        )(x)
        tokens = tokens + drop(x)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm2")(tokens)
        x = nn.Dense(self.mlp_ratio * width, dtype=self.dtype, kernel_init=xavier, name="mlp1")(x)
        x = nn.gelu(x, approximate=False)
        x = nn.Dense(width, dtype=self.dtype, kernel_init=xavier, name="mlp2")(x)
        return tokens + drop(x)


class ViT(nn.Module):
    """A vision transformer over square patches, which classifies images by its class token.

    Attributes:
      num_classes: K.
      width, depth, heads: D, number of blocks, attention heads.
      patch_size: side of a patch in pixels; 16 for 224×224 images, 4 for 32×32.
      mlp_ratio: the perceptron's hidden width, divided by D.
      dropout: rate of dropout after the position embeddings and after each branch of a block.
      remat: what the backward of a block computes again to save memory: "none" or "blocks".
      dtype: compute dtype; parameters, the attention's softmax and logits are float32.

    Called with images `[N, H, W, C]`, it returns `(logits float32 [N, K], features [N, D])`. The features are the class
    token after the final LayerNorm. Positions are learned for the image size that the parameters were initialised with.

    Raises:
      ValueError: for an invalid attribute, images whose sides `patch_size` does not divide, or images of another size
        than the parameters were initialised with.

    References:
      Dosovitskiy et al., "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929, 2020;
      sizes Ti and S: Touvron et al., https://arxiv.org/abs/2012.12877, 2020.
    """

    num_classes: int
    width: int = 192
    depth: int = 12
    heads: int = 3
    patch_size: int = 16
    mlp_ratio: int = 4
    dropout: float = 0.0
    remat: str = "none"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        for field in ("width", "depth", "heads", "patch_size", "mlp_ratio"):
            check_positive(field, (getattr(self, field),))
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide width = {self.width}")
        check_range("dropout", self.dropout, 0, 1, high_open=True)
        check_choice("remat", self.remat, REMATS)
        super().__post_init__()

    @property
    def activations(self) -> tuple[str, ...]:
        """The layers whose outputs go through a GELU, in order."""
        return tuple(f"block{index}/mlp1" for index in range(1, self.depth + 1))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        check_image_size(images, least=self.patch_size)
        if images.shape[1] % self.patch_size or images.shape[2] % self.patch_size:
            raise ValueError(
                f"patch_size = {self.patch_size} must divide the height and width of images, {images.shape[1:3]}"
            )
        patch = (self.patch_size, self.patch_size)
        # In eval mode it stays a convolution, from which attribution methods read where a token lies.
        product = {"conv_general_dilated": patch_product} if train else {}
        x = nn.Conv(self.width, patch, patch, padding="VALID", dtype=self.dtype, name="patches", **product)(
            images.astype(self.dtype)
        )
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("class_token", nn.initializers.normal(1e-6), (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self._positions(x.shape[1]).astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        block = rematerialised(EncoderBlock, self.remat, train=train)
        for index in range(1, self.depth + 1):
            x = block(self.heads, self.mlp_ratio, self.dropout, self.dtype, name=f"block{index}")(x, train)
        features = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)[:, 0]
        return classifier(features, self.num_classes), features

    def _positions(self, tokens: int) -> jax.Array:
        """Return the learned position embeddings `[1, T, D]`, class token first."""
        if self.has_variable("params", "positions"):
            learned = self.get_variable("params", "positions").shape[1]
            if learned != tokens:
                raise ValueError(
                    f"images give {tokens - 1} patches, but the parameters have positions for {learned - 1}: use the "
                    "image size that the model was initialised with"
                )
        return self.param("positions", nn.initializers.normal(0.02), (1, tokens, self.width))
