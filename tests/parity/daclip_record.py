"""Record what the published DA-CLIP and Refusion compute, on tiny networks with random weights, on a CPU.

    python daclip_record.py CHECKOUT_OF_daclip-uir CHECKOUT_OF_image-restoration-sde OUT

Imports the published code from the checkouts; run it outside this repository. Checkpoints are written as the
published training code does, gzipped, and the results beside them.
"""

import copy
import gzip
import importlib
import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

WORDS = [
    "motion-blurry",
    "hazy",
    "jpeg-compressed",
    "low-light",
    "noisy",
    "raindrop",
    "rainy",
    "shadowed",
    "snowy",
    "uncompleted",
]
CAPTIONS = [
    "A dog runs over WET grass &amp; mud, seen from below",
    "café at night: two people",
    "word " * 100,
]
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 48, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    "custom_text": True,
}


def save_gzipped(content, path):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(gzip.compress(buffer.getvalue(), 9, mtime=0))


def rounded(parameter):
    """Half-precision values compress better."""
    parameter.copy_(parameter.half().float())


def daclip(out):
    from open_clip import tokenize
    from open_clip.daclip_model import DaCLIP
    from open_clip.model import CLIP

    def build(seed):
        torch.manual_seed(seed)
        config = copy.deepcopy(CONFIG)
        config.pop("custom_text")
        return DaCLIP(CLIP(**config))

    model = build(1)
    model.initial_controller()
    model.lock_clip()
    generator = torch.Generator().manual_seed(2)
    used = torch.cat([tokenize(WORDS), tokenize(CAPTIONS)]).unique()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # every weight moved, so that each matters
            if parameter.dim() == 0:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if "visual_control" in name:
                parameter.add_(noise * 0.05)
            elif "ln_" in name or name.endswith("bias"):
                parameter.add_(noise * 0.1)
            rounded(parameter)
        model.logit_scale.fill_(4.25)
        model.clip.logit_scale.fill_(4.5)
        table = model.clip.token_embedding.weight
        kept = table[used].clone() * 20
        table.zero_()  # tokens no text uses compress away
        table[used] = kept
        rounded(table)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW([{"params": trainable, "weight_decay": 0.05}], lr=3e-5, betas=(0.9, 0.98))
    for group in optimizer.param_groups:  # as its cosine schedule: a NumPy float64
        group["lr"] = 0.5 * (1 + np.cos(np.pi * 0.25)) * 3e-5
    checkpoint = {"epoch": 3, "name": "tiny", "state_dict": model.state_dict()}
    checkpoint |= {"optimizer": optimizer.state_dict(), "scaler": torch.amp.GradScaler("cpu").state_dict()}
    save_gzipped(checkpoint, out / "daclip_tiny.pt.gz")
    (out / "daclip_tiny.json").write_text(json.dumps(CONFIG, indent=1))

    started = build(5)  # the order of the published factory: build, frozen weights, controller
    started.clip.load_state_dict(model.clip.state_dict())
    started.initial_controller()
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(3)).half().float()
    tokens, captions = tokenize(WORDS), tokenize(CAPTIONS)
    with torch.no_grad():
        model.eval()
        started.eval()
        content, degradation = model.encode_image(pixels, control=True)
        start_content, start_degradation = started.encode_image(pixels, control=True)
        features = model(pixels, torch.cat([captions, tokens[[0, 3, 6]]], 1))
        unit = model.encode_image(pixels, control=True, normalize=True)[1]
        recorded = {
            "pixels": pixels,
            "content": content,
            "degradation": degradation,
            "plain": model.encode_image(pixels),
            "tokens": tokens,
            "texts": model.encode_text(tokens),
            "caption_tokens": captions,
            "probabilities": (100.0 * unit @ model.encode_text(tokens, normalize=True).T).softmax(-1),
            "start_content": start_content,
            "start_degradation": start_degradation,
            **{f"forward_{name}": value for name, value in features.items()},
        }
    np.savez_compressed(out / "daclip_tiny.npz", **{name: value.numpy() for name, value in recorded.items()})


def refusion(folder, out):
    package = types.ModuleType("modules")  # without running its __init__, which imports more than is needed
    package.__path__ = [str(folder)]
    sys.modules["modules"] = package
    published = importlib.import_module("modules.DenoisingNAFNet_arch")
    torch.manual_seed(3)
    network = published.ConditionalNAFNet(width=8, enc_blk_nums=[1, 2], middle_blk_num=1, dec_blk_nums=[1, 1])
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("beta", "gamma")):
                parameter.normal_()
            if name.endswith(".g"):
                parameter.add_(0.2 * torch.randn_like(parameter))
            rounded(parameter)
        save_gzipped(network.state_dict(), out / "daclip_refusion.pth.gz")
        x, mu = (torch.rand(3, 3, 21, 30).half() for _ in range(2))
        t = torch.tensor([1.0, 37.5, 100.0])
        noise = network.eval()(x.float(), mu.float(), t)
    np.savez_compressed(
        out / "daclip_refusion.npz", x=x.numpy(), mu=mu.numpy(), t=t.numpy(), noise=noise.numpy()
    )


if __name__ == "__main__":
    uir, sde, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    torch.nn.Module.cuda = lambda self: self  # published: .cuda() in the constructor of the controller
    sys.path.insert(0, str(uir / "universal-image-restoration"))
    daclip(out)
    refusion(sde / "codes/config/deraining/models/modules", out)
    print("torch", torch.__version__, "numpy", np.__version__)
