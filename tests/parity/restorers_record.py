"""Record the published Restormer, PromptIR and AirNet.

python tests/parity/restorers_record.py CHECKOUT_OF_Restormer CHECKOUT_OF_PromptIR CHECKOUT_OF_AirNet
"""

import gzip
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from unet_weights import weights

HERE = Path(__file__).parent
RESTORMER, PROMPTIR, AIRNET = map(Path, sys.argv[1:4])


def module(folder: Path, name: str) -> ModuleType:
    """A module of a checkout; two of them call their package `net`."""
    for loaded in [key for key in sys.modules if key.partition(".")[0] == "net"]:
        del sys.modules[loaded]
    sys.path.insert(0, str(folder))
    found = import_module(name)
    sys.path.pop(0)
    return found


def deformed(x, offset, mask, weight, bias, stride, padding, dilation, groups, _):
    return torchvision.ops.deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)


# mmcv needs a compiler; torchvision's operator has the same arguments in the same layout
sys.modules["mmcv"] = ModuleType("mmcv")
sys.modules["mmcv.ops"] = ModuleType("mmcv.ops")
sys.modules["mmcv.ops"].modulated_deform_conv2d = deformed
Tensor.cuda = lambda self: self

restormer = module(RESTORMER / "basicsr/models/archs", "restormer_arch").Restormer
promptir = module(PROMPTIR, "net.model").PromptIR
airnet = module(AIRNET, "net.model").AirNet


def small() -> dict[str, nn.Module]:
    """A small network of each kind, as far as the published code lets itself be shrunk."""
    few = {"num_blocks": [1, 2, 1, 1], "num_refinement_blocks": 1}
    return {
        "restormer": restormer(dim=8, **few, LayerNorm_type="WithBias"),
        "restormer-bias-free": restormer(dim=8, **few, LayerNorm_type="BiasFree"),
        "promptir": promptir(**few, decoder=True),
        "airnet": airnet(SimpleNamespace(batch_size=2)),
    }


def filled(network: nn.Module, name: str) -> nn.Module:
    """The network with weights made from their names; see the test of each for the same."""
    own = network.state_dict()
    for key, value in weights({key: value.shape for key, value in own.items()}).items():
        if own[key].is_floating_point():
            # halved, because moved places that are far off make AirNet's output as good as random
            scale = 0.5 if name == "airnet" and key.startswith("R.") else 1
            own[key] = scale * torch.from_numpy(np.asarray(value)).reshape(own[key].shape)
        if key.endswith("running_var"):
            own[key] = own[key].abs() + 0.5
    network.load_state_dict(own)
    return network


torch.manual_seed(0)
values: dict[str, np.ndarray] = {}
for name, network in small().items():
    filled(network, name).eval()
    if name == "airnet":
        query, key = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
        network.train()
        with torch.no_grad():
            first, second = network.E(query, key)[1], network.E(key, query)[1]
        values |= {"query": query.numpy(), "key": key.numpy()}
        values |= {"logits": np.stack([first.numpy(), second.numpy()])}
        filled(network, name).eval()
    for i, (b, h, w) in enumerate([(2, 16, 24), (1, 32, 8)]):
        mu = torch.rand(b, 3, h, w)
        with torch.no_grad():
            clean = network(mu, mu) if name == "airnet" else network(mu)
        values |= {f"{name}_{i}_mu": mu.numpy(), f"{name}_{i}_clean": clean.numpy()}
    values[f"{name}_names"] = np.array(list(network.state_dict()))
    values[f"{name}_shapes"] = np.array(
        ["x".join(map(str, value.shape)) for value in network.state_dict().values()]
    )
np.savez_compressed(HERE / "restorers_small.npz", **values)

full = {
    "restormer": restormer(),
    "restormer-bias-free": restormer(LayerNorm_type="BiasFree"),
    "promptir": promptir(decoder=True),
    "airnet": airnet(SimpleNamespace(batch_size=5)),
}
lines = [
    f"{name}\t{key}\t{'x'.join(map(str, value.shape)) or 'scalar'}\n"
    for name, network in full.items()
    for key, value in network.state_dict().items()
]
(HERE / "restorers_official_keys.tsv.gz").write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
