"""Time and memory of one U-Net step, ours against a plain implementation of the published computation.

python benchmarks/unet.py [--sizes 256 512] [--batches 1 4] [--threads 2] [--rounds 3]

Both have the same weights (universal-ir, 48.98 M, random). Processor seconds are the best of interleaved
rounds; memory is what a process of its own holds at its peak above what it held before the step (Linux).
"""

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from daclip.networks.unet import UNet

Weights = Mapping[str, Tensor]


def published_computation(
    w: Weights, x: Tensor, mu: Tensor, t: Tensor, content: Tensor, degradation: Tensor
) -> Tensor:
    """The U-Net of universal-ir, operation by operation as described: einsum attention, nothing folded."""
    f = torch.exp(torch.arange(32) * (-torch.log(torch.tensor(10000.0)) / 31))
    angle = t[:, None] * f
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    e = linear(w, "time_mlp.3", F.gelu(linear(w, "time_mlp.1", wave)))
    prompt = (
        linear(w, "text_mlp.2", F.silu(linear(w, "text_mlp.0", degradation))).softmax(dim=1) * w["prompt"]
    )
    e = e + linear(w, "prompt_mlp", prompt)
    z = F.conv2d(torch.cat([x - mu, mu], dim=1), w["init_conv.weight"], padding=3)
    first, skips = z.clone(), []
    for i in range(4):
        z = res_block(w, f"downs.{i}.0", z, e)
        skips.append(z)
        z = res_block(w, f"downs.{i}.1", z, e)
        z = attention(w, f"downs.{i}.2.fn", z, content)
        skips.append(z)
        name = f"downs.{i}.3"
        z = conv(w, name, z, stride=2) if i < 3 else conv(w, name, z)
    z = res_block(w, "mid_block1", z, e)
    z = attention(w, "mid_attn.fn", z, content)
    z = res_block(w, "mid_block2", z, e)
    for i in range(4):
        z = res_block(w, f"ups.{i}.0", torch.cat([z, skips.pop()], dim=1), e)
        z = res_block(w, f"ups.{i}.1", torch.cat([z, skips.pop()], dim=1), e)
        z = attention(w, f"ups.{i}.2.fn", z, content)
        if i < 3:
            z = conv(w, f"ups.{i}.3.1", F.interpolate(z, scale_factor=2.0, mode="nearest"))
        else:
            z = conv(w, f"ups.{i}.3", z)
    z = res_block(w, "final_res_block", torch.cat([z, first], dim=1), e)
    return conv(w, "final_conv", z)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def conv(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = w[f"{name}.weight"]
    return F.conv2d(x, weight, w.get(f"{name}.bias"), stride=stride, padding=(weight.shape[-1] - 1) // 2)


def res_block(w: Weights, name: str, x: Tensor, e: Tensor) -> Tensor:
    scale, shift = linear(w, f"{name}.mlp.1", F.silu(e))[:, :, None, None].chunk(2, dim=1)
    h = F.silu(conv(w, f"{name}.block1.proj", x) * (scale + 1) + shift)
    h = F.silu(conv(w, f"{name}.block2.proj", h))
    return h + (conv(w, f"{name}.res_conv", x) if f"{name}.res_conv.weight" in w else x)


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    variance = torch.var(x, dim=1, unbiased=False, keepdim=True)
    return (x - x.mean(dim=1, keepdim=True)) * (variance + 1e-5).rsqrt() * w[f"{name}.g"]


def attention(w: Weights, name: str, x: Tensor, content: Tensor) -> Tensor:
    inner = linear_attention if f"{name}.fn.to_qkv.weight" in w else transformer
    return inner(w, f"{name}.fn", layer_norm(w, f"{name}.norm", x), content) + x


def linear_attention(w: Weights, name: str, x: Tensor, content: Tensor) -> Tensor:
    b, _, h, width = x.shape
    q, k, v = (part.reshape(b, 4, 32, h * width) for part in conv(w, f"{name}.to_qkv", x).chunk(3, dim=1))
    q, k, v = q.softmax(dim=-2) * 32**-0.5, k.softmax(dim=-1), v / (h * width)
    context = torch.einsum("bhdn,bhen->bhde", k, v)
    out = torch.einsum("bhde,bhdn->bhen", context, q).reshape(b, 128, h, width)
    return layer_norm(w, f"{name}.to_out.1", conv(w, f"{name}.to_out.0", out))


def transformer(w: Weights, name: str, x: Tensor, content: Tensor) -> Tensor:
    z = F.group_norm(x, 32, w[f"{name}.norm.weight"], w[f"{name}.norm.bias"], eps=1e-6)
    u = conv(w, f"{name}.proj_in", z).flatten(2).transpose(1, 2)
    block = f"{name}.transformer_blocks.0"
    u = softmax_attention(w, f"{block}.attn1", token_norm(w, f"{block}.norm1", u), None) + u
    u = softmax_attention(w, f"{block}.attn2", token_norm(w, f"{block}.norm2", u), content[:, None]) + u
    value, gate = linear(w, f"{block}.ff.net.0.proj", token_norm(w, f"{block}.norm3", u)).chunk(2, dim=-1)
    u = linear(w, f"{block}.ff.net.2", value * F.gelu(gate)) + u
    return conv(w, f"{name}.proj_out", u.transpose(1, 2).reshape(x.shape)) + x


def token_norm(w: Weights, name: str, u: Tensor) -> Tensor:
    return F.layer_norm(u, u.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def softmax_attention(w: Weights, name: str, u: Tensor, source: Tensor | None) -> Tensor:
    source = u if source is None else source
    q, k, v = (
        linear(w, f"{name}.to_q", u),
        linear(w, f"{name}.to_k", source),
        linear(w, f"{name}.to_v", source),
    )
    q, k, v = (part.unflatten(2, (-1, 32)).transpose(1, 2) for part in (q, k, v))
    share = (torch.einsum("bhid,bhjd->bhij", q, k) * 32**-0.5).softmax(dim=-1)
    out = torch.einsum("bhij,bhjd->bhid", share, v)
    return linear(w, f"{name}.to_out.0", out.transpose(1, 2).flatten(2))


def steps(size: int, batch: int) -> dict[str, Callable[[], Tensor]]:
    """Both computations on the same weights and inputs."""
    torch.manual_seed(0)
    network = UNet().eval()
    x, mu, t = torch.rand(batch, 3, size, size), torch.rand(batch, 3, size, size), torch.full((batch,), 50.0)
    content, degradation = torch.randn(batch, 512), torch.randn(batch, 512)
    weights = network.state_dict()
    for name, weight in weights.items():  # away from the zero start of the transformers
        if name.endswith("proj_out.weight"):
            weight.normal_(std=0.05)

    def ours() -> Tensor:
        with torch.inference_mode():
            return network(x, mu, t, content=content, degradation=degradation)

    def plain() -> Tensor:
        with torch.inference_mode():
            return published_computation(weights, x, mu, t, content, degradation)

    return {"plain": plain, "ours": ours}


def peak_mb(which: str, size: int, batch: int, threads: int) -> float:
    """Memory of one step, in a process of its own."""
    command = [sys.executable, __file__, "--peak", which, str(size), str(batch), "--threads", str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(which: str, size: int, batch: int) -> None:
    step = steps(size, batch)[which]
    step()  # the first step loads libraries
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status_mb("VmRSS")
    step()
    print(status_mb("VmHWM") - before)


def status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def seconds(step: Callable[[], Tensor]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - processor


def machine(threads: int) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor() or platform.machine()
    return f"{threads} threads of {cpu}, torch {torch.__version__}, float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", nargs=3, metavar=("WHICH", "SIZE", "BATCH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak:
        return print_peak(given.peak[0], int(given.peak[1]), int(given.peak[2]))
    print(f"One step of the U-Net of universal-ir; {machine(given.threads)}\n")
    print(
        "| photo | batch | plain s (cpu s) | ours s (cpu s) | cpu ratio | plain MB | ours MB | difference |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for size in given.sizes:
        for batch in given.batches:
            both = steps(size, batch)
            plain, ours = both["plain"](), both["ours"]()
            rounds = [{name: seconds(step) for name, step in both.items()} for _ in range(given.rounds)]
            best = {name: tuple(min(r[name][i] for r in rounds) for i in (0, 1)) for name in both}
            mb = {name: peak_mb(name, size, batch, given.threads) for name in both}
            cells = [f"{best[name][0]:.2f} ({best[name][1]:.2f})" for name in ("plain", "ours")]
            difference = ((plain - ours).abs().max() / plain.abs().max()).item()
            print(
                f"| {size} x {size} | {batch} | {cells[0]} | {cells[1]} "
                f"| {best['plain'][1] / best['ours'][1]:.2f} "
                f"| {mb['plain']:.0f} | {mb['ours']:.0f} | {difference:.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
