"""Record the published U-Nets: python tests/parity/unet_record.py <daclip-uir> <image-restoration-sde>."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from unet_weights import weights

HERE = Path(__file__).parent
universal, irsde = Path(sys.argv[1]) / "universal-image-restoration", Path(sys.argv[2]) / "codes"


def published(modules: Path) -> type[torch.nn.Module]:
    """The U-Net class of one of the published configurations."""
    package = ModuleType(modules.parts[-3].replace("-", "_"))
    package.__path__ = [str(modules)]
    sys.modules[package.__name__] = package
    return import_module(f"{package.__name__}.DenoisingUNet_arch").ConditionalUNet


def networks() -> dict[str, tuple[torch.nn.Module, int, list[tuple[int, int, int]]]]:
    """Small networks of each kind, the length of their embeddings, and the sizes to run."""
    make_universal = published(universal / "config/daclip-sde/models/modules")
    make_wild = published(universal / "config/wild-ir/models/modules")
    make_plain = published(irsde / "config/deraining/models/modules")
    return {
        "universal": (
            make_universal(3, 3, 32, [1, 1, 2, 2], 16, use_degra_context=True, use_image_context=True),
            16,
            [(2, 32, 32), (1, 37, 50)],
        ),
        "wild": (
            make_wild(3, 3, 32, [1, 2], 24, use_degra_context=False, use_image_context=True, scale=0.5),
            24,
            [(2, 24, 32), (1, 33, 19)],
        ),
        "plain": (make_plain(3, 3, 16, 3), 0, [(2, 24, 24), (1, 21, 45)]),
    }


torch.manual_seed(0)
values: dict[str, np.ndarray] = {}
for name, (network, context, sizes) in networks().items():
    state = weights({key: value.shape for key, value in network.state_dict().items()})
    network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    values[f"{name}_names"] = np.array(list(state))
    values[f"{name}_shapes"] = np.array(["x".join(map(str, v.shape)) for v in state.values()])
    for i, (b, h, w) in enumerate(sizes):
        inputs = {
            "x": torch.rand(b, 3, h, w),
            "mu": torch.rand(b, 3, h, w),
            "t": torch.rand(b) * 100,
            "content": torch.randn(b, context),
            "degradation": torch.randn(b, context),
        }
        conditions = {}
        if context:
            conditions = {"image_context": inputs["content"], "text_context": inputs["degradation"]}
        with torch.no_grad():
            inputs["noise"] = network(inputs["x"], inputs["mu"], inputs["t"], **conditions)
        values |= {f"{name}_{i}_{key}": value.numpy() for key, value in inputs.items()}
np.savez_compressed(HERE / "unet_small.npz", **values)
