"""Model folders: their description (config.json), and finding them by bundled name, path or hub id.

A model folder holds `config.json`, `model.safetensors` (the restorer under `network.`, the encoder under
`encoder.`), a card `README.md`, and after export the graphs `encoder.onnx`, `restorer.onnx` and, of a network
that finds shadows, `shade.onnx`; of one that was calibrated (`calibrate.ranges`) also `restorer.int8.onnx`.

Where a restorer's encoder lies: a restorer trained here on an encoder of its own carries it, weights and
description, and stands alone. One trained on a bundled model or one of the hub names it instead
(`"encoder": "compact-encoder"`), and it is found beside the restorer, in this package, or on the hub. So is
the restorer of one pass that a diffusion goes on from (`"initial": "compact"`).
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from daclip.detect import ClassTexts
from daclip.errors import ModelError, UsageError

FORMAT = 1
"""Version of the folder format; a reader refuses a newer one."""

INT8 = ".int8.onnx"
"""How the names of graphs end that compute in 8-bit integers, in the place of `.onnx`."""

Ranges = dict[str, tuple[float, float, float, float]]
"""Lowest and highest value of what each convolution is given, and of what it gives, by its name."""

ModelKind = Literal["encoder", "one-pass", "diffusion"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The description of one model folder.

    Args:
        kind: `encoder` (a DA-CLIP alone), `one-pass` or `diffusion` (a restorer).
        encoder: the DA-CLIP in this folder as {"name": "open_clip" or "timm", ...}, or the name of the
            bundled or sibling folder that holds it.
        network: the restorer as {"name": "unet" or "nafnet", ... constructor arguments}; None for an encoder
            alone.
        initial: name of the one-pass model whose answer a diffusion takes for the degraded photo, and refines
            ("predict and refine", Whang et al., CVPR 2022); None: it begins with the degraded photo itself.
        sde: arguments of IRSDE; only for diffusion.
        objective: what a diffusion network predicts: the noise, `published` (biased, PAPER 2.3) or `noise`,
            or `x0`, the clean photo.
        sampler, steps: defaults for a diffusion model.
        times: of its calls, the first the latest; empty: `steps` calls at even distances.
        view_side, mean, std: side in pixels and normalisation of what the encoder sees.
        texts: the words the model knows, with embeddings.
        word_share: of words that are named, but not found, in what a restorer is told; the rest is what the
            photo itself shows. 1: the words alone.
        brings_out: of a degradation, those that its removal brings out, such as the noise of what was dark:
            looked for in the answer, and treated in a second run.
        multiple: tile sides the network likes, in pixels.
        overlap: pixels of context a tile needs around it.
        int8: of each convolution that can also compute in 8-bit integers, by its name in the network, the
            lowest and highest value that it is given and that it gives, see calibrate.ranges; empty: none
            can.
        bytes_per_pixel: working memory of the restorer per pixel of a tile, measured.
        dtype: of the stored weights.
    """

    kind: ModelKind
    encoder: dict[str, Any] | str
    network: dict[str, Any] | None = None
    initial: str | None = None
    sde: dict[str, Any] | None = None
    objective: Literal["published", "noise", "x0"] | None = None
    sampler: str | None = None
    steps: int = 1
    times: tuple[int, ...] = ()
    view_side: int = 224
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    texts: ClassTexts | None = None
    word_share: float = 1.0
    brings_out: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    multiple: int = 16
    overlap: int = 32
    bytes_per_pixel: int = 2000
    int8: Ranges = field(default_factory=dict[str, tuple[float, float, float, float]])
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


def write_config(config: ModelConfig, folder: Path) -> None:
    """Write `config.json` into the folder."""
    values: dict[str, Any] = {"model_type": "daclip", "format": FORMAT, **asdict(config)}
    if config.texts is not None:
        values["texts"]["embeddings"] = [
            [float(f"{value:.7g}") for value in row] for row in config.texts.embeddings.tolist()
        ]
    (folder / "config.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_config(folder: Path) -> ModelConfig:
    """The description in `config.json` of the folder.

    Raises ModelError when the file is absent, not ours, of a newer format, or has unknown or missing keys.
    """
    path = folder / "config.json"
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder}: no config.json", hint="name a model folder; `daclip models list` shows all"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict) or cast("dict[str, Any]", values).pop("model_type", None) != "daclip":
        raise ModelError(f"{path}: not a daclip model")
    values = cast("dict[str, Any]", values)
    if (version := values.pop("format", None)) != FORMAT:
        raise ModelError(f"{path}: format {version}, this daclip reads {FORMAT}", hint="update daclip")
    known = {each.name for each in fields(ModelConfig)}
    if unknown := sorted(set(values) - known):
        raise ModelError(f"{path}: unknown keys {', '.join(unknown)}", hint="update daclip, or mend the file")
    try:
        if values.get("texts") is not None:
            values["texts"] = _texts(values["texts"])
        for name in ("mean", "std"):
            if name in values:
                values[name] = tuple(float(number) for number in values[name])
        values["times"] = tuple(int(time) for time in values.get("times", ()))
        brings_out = dict(values.get("brings_out", {}))
        values["brings_out"] = {name: tuple(map(str, words)) for name, words in brings_out.items()}
        int8 = dict(values.get("int8", {}))
        values["int8"] = {
            name: (float(low), float(high), float(least), float(most))
            for name, (low, high, least, most) in int8.items()
        }
        config = ModelConfig(**values)
        if config.kind not in get_args(ModelKind):
            raise ValueError(f"kind {config.kind!r} is none of {', '.join(get_args(ModelKind))}")
        return config
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: {error}", hint="mend the file, or convert the model again") from error


def _texts(values: dict[str, Any]) -> ClassTexts:
    embeddings = np.asarray(values.pop("embeddings"), dtype=np.float32)
    names = tuple(str(name) for name in values.pop("names"))
    if embeddings.ndim != 2 or len(names) != len(embeddings):
        raise ValueError(f"{len(names)} words but text embeddings of shape {embeddings.shape}")
    return ClassTexts(names=names, embeddings=embeddings, **values)


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model folder that was found, with the folder of the encoder it uses (often itself).

    Args:
        path: the folder.
        name: the bundled name, the hub id, or the name of the folder.
        source: `bundled`, `cached` (from the hub) or `folder`.
        config: its description.
        encoder_path, encoder_config: the folder that holds the encoder, and its description.
        initial: the folder of the model that a diffusion goes on from, where it has one.
        shade: the folder of the network that finds shadows for it, its own or `initial`; None: none does.
    """

    path: Path
    name: str
    source: Literal["bundled", "cached", "folder"]
    config: ModelConfig
    encoder_path: Path
    encoder_config: ModelConfig
    initial: Path | None = None
    shade: Path | None = None

    @property
    def texts(self) -> ClassTexts:
        """The words the model knows, its own or its encoder's."""
        texts = self.config.texts or self.encoder_config.texts
        if texts is None:
            raise ModelError(
                f"{self.path}: no class texts in config.json", hint="convert or export the model again"
            )
        return texts

    @property
    def graphs(self) -> dict[str, Path]:
        """The exported graphs the model needs; maybe not there.

        `encoder`; for a restorer `restorer`; `initial` for a diffusion that goes on from another model;
        `shade` where shadows are found.
        """
        graphs = {"encoder": self.encoder_path / "encoder.onnx"}
        if self.config.kind != "encoder":
            graphs["restorer"] = self.path / "restorer.onnx"
        if self.initial is not None:
            graphs["initial"] = self.initial / "restorer.onnx"
        if self.shade is not None:
            graphs["shade"] = self.shade / "shade.onnx"
        return graphs

    @property
    def int8_graphs(self) -> dict[str, Path]:
        """Those of the graphs that were also exported for 8-bit integers."""
        names = {name: graph.with_suffix(INT8) for name, graph in self.graphs.items()}
        return {name: graph for name, graph in names.items() if graph.is_file()}

    @property
    def is_exported(self) -> bool:
        """True when every graph is there, so that the model runs without torch."""
        return all(graph.is_file() for graph in self.graphs.values())


def find(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
    token: str | None = None,
) -> ModelFolder:
    """The model folder a name stands for: bundled name, folder, hub cache, hub, in this order.

    A hub id is `owner/name` or `owner/name@revision`. The network is used only for one that is not in the
    cache, and never with `offline` or HF_HUB_OFFLINE.
    Raises ModelError that names the nearest known model.
    """
    text = str(name)
    if isinstance(name, str) and (_WEIGHTS / name / "config.json").is_file() and _PLAIN.fullmatch(name):
        return _open(_WEIGHTS / name, name, "bundled")
    if Path(name).is_dir():
        return _open(Path(name), Path(name).resolve().name, "folder")
    if isinstance(name, str) and (hub := _HUB_ID.fullmatch(name)) and not _looks_like_path(name):
        path = _from_hub(
            hub["id"], revision or hub["revision"], cache_dir=cache_dir, offline=offline, token=token
        )
        return _open(path, text, "cached", cache_dir=cache_dir, offline=offline, token=token)
    near = get_close_matches(text, bundled_names(), n=1, cutoff=0.5)
    meant = f'did you mean "{near[0]}"? ' if near else ""
    raise ModelError(
        f'no model "{text}"', hint=f"{meant}`daclip models list` shows all; a folder or owner/name works too"
    )


def bundled_names() -> list[str]:
    """The names of the models inside this package, restorers and encoders."""
    return sorted(path.parent.name for path in _WEIGHTS.glob("*/config.json"))


def bundled() -> list[ModelFolder]:
    """The models inside this package."""
    return [find(name) for name in bundled_names()]


def cached(cache_dir: Path | None = None) -> list[ModelFolder]:
    """The models of ours in the local cache of the hub; folders that cannot be read are left out."""
    found: list[ModelFolder] = []
    for path in sorted((cache_dir or hub_cache()).glob("models--*--*/snapshots/*/config.json")):
        owner, _, name = path.parents[2].name.removeprefix("models--").partition("--")
        try:
            found.append(_open(path.parent, f"{owner}/{name}", "cached", cache_dir=cache_dir, offline=True))
        except ModelError:
            continue
    return found


def hub_cache() -> Path:
    """The folder where models of the hub are kept: DACLIP_CACHE, else what the hub's own variables say."""
    if own := os.environ.get("DACLIP_CACHE"):
        return Path(own)
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a person wants to know of a model before using it."""

    licence: str
    size_bytes: int
    weights_sha256: str
    card: str


def describe(folder: ModelFolder) -> Description:
    """Licence, size on disk, hash of the weights, and the card (empty where there is none)."""
    card = folder.path / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    licence = re.search(r"^license(?:_name)?:\s*[\"']?([^\"'\n]+)", text, flags=re.MULTILINE)
    sizes = [path.stat().st_size for path in folder.path.iterdir() if path.is_file()]
    return Description(
        licence=licence[1].strip() if licence else "not stated",
        size_bytes=sum(sizes),
        weights_sha256=weights_sha256(folder),
        card=text,
    )


def weights_sha256(folder: ModelFolder) -> str:
    """The hash that names the weights: of `model.safetensors`, else of the graphs in the folder, as hex."""
    weights = folder.path / "model.safetensors"
    files = [weights] if weights.is_file() else sorted(folder.path.glob("*.onnx*"))
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


_WEIGHTS = Path(__file__).parent / "weights"
_PLAIN = re.compile(r"[A-Za-z0-9][\w.-]*")
_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
# what a user needs to restore or to go on training; repositories may hold more
_HUB_FILES = ["config.json", "model.safetensors", "*.onnx", "*.onnx.data", "README.md"]


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).parent.is_dir()


def _open(
    path: Path,
    name: str,
    source: Literal["bundled", "cached", "folder"],
    *,
    cache_dir: Path | None = None,
    offline: bool = False,
    token: str | None = None,
) -> ModelFolder:
    """The folder with the models it names: its encoder, which may be its own, and what it goes on from."""
    config = read_config(path)

    def place(part: str, wanted: str) -> Path:
        """The folder of a model beside it, or bundled, or on the hub."""
        # a plain name only: a config from a stranger must not reach outside its own surroundings
        sibling = path.parent / wanted
        if _PLAIN.fullmatch(wanted) and (sibling / "config.json").is_file():
            return sibling
        if not (_PLAIN.fullmatch(wanted) or _HUB_ID.fullmatch(wanted)):
            raise ModelError(f'{path}: {part} "{wanted}" is neither a model name nor a hub id')
        return find(wanted, cache_dir=cache_dir, offline=offline, token=token).path

    encoder = place("encoder", config.encoder) if isinstance(config.encoder, str) else path
    initial, shade = None, path if _finds_shadows(config) else None
    if config.initial is not None:
        initial = place("initial", config.initial)
        first = read_config(initial)
        shade = shade or (initial if _finds_shadows(first) else None)
        if config.kind != "diffusion" or first.kind != "one-pass":
            raise ModelError(f'{path}: initial "{config.initial}" is for a diffusion, and of one pass')
    return ModelFolder(
        path=path,
        name=name,
        source=source,
        config=config,
        encoder_path=encoder,
        encoder_config=config if encoder == path else read_config(encoder),
        initial=initial,
        shade=shade,
    )


def _finds_shadows(config: ModelConfig) -> bool:
    return bool((config.network or {}).get("shade"))


def _from_hub(
    repository: str, revision: str | None, *, cache_dir: Path | None, offline: bool, token: str | None
) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    def download(*, local_files_only: bool) -> Path:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache_dir or hub_cache(),
                token=token,
                local_files_only=local_files_only,
                allow_patterns=_HUB_FILES,
                library_name="daclip",
            )
        )

    wanted = f"{repository}@{revision}" if revision else repository
    try:
        return download(local_files_only=True)
    except errors.HFValidationError as error:
        raise UsageError(
            f'"{wanted}" is not a hub id', hint="write owner/name or owner/name@revision"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        if offline or constants.HF_HUB_OFFLINE:
            raise ModelError(
                f"{wanted}: not in the cache and offline", hint="run once without --offline, or pass a folder"
            ) from error
    try:
        return download(local_files_only=False)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ModelError(
            f"{wanted}: no such folder, and no such model on the hub",
            hint="check the name; HF_TOKEN opens private ones",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{wanted}: the hub cannot be reached ({reason})", hint="try again, or pass a folder"
        ) from error
