"""PSNR, SSIM and LPIPS agree with independent implementations."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daclip import metrics
from daclip.errors import DataError
from daclip.metrics import PROTOCOLS

WEIGHTS = Path(__file__).parents[2] / "shared" / "data" / "weights"


def photo(seed: int, height: int = 61, width: int = 84) -> np.ndarray:
    """A smooth photo with some texture, uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / (5 + c)) + np.cos(columns / (9 - c)) for c in range(3)], axis=2)
    return np.clip(120 + 50 * waves + rng.normal(0, 8, waves.shape), 0, 255).astype(np.uint8)


def worse(clean: np.ndarray, sigma: float = 20) -> np.ndarray:
    noise = np.random.default_rng(9).normal(0, sigma, clean.shape)
    return np.clip(clean + noise, 0, 255).astype(np.uint8)


@settings(max_examples=15, deadline=None)
@given(st.integers(11, 40), st.integers(11, 40), st.integers(0, 5))
def test_psnr_and_ssim_are_those_of_scikit_image(height: int, width: int, seed: int) -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    clean = photo(seed, height, width)
    degraded = worse(clean)
    assert metrics.psnr(degraded, clean) == pytest.approx(peak_signal_noise_ratio(clean, degraded), abs=1e-9)
    theirs = structural_similarity(
        clean, degraded, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert metrics.ssim(degraded, clean) == pytest.approx(theirs, abs=1e-9)


def test_the_published_protocol_leaves_out_four_pixels_at_each_border() -> None:
    clean = photo(0)
    inside = (slice(4, -4), slice(4, -4))
    degraded = worse(clean)
    crop4 = PROTOCOLS["rgb-crop4"]
    assert metrics.psnr(degraded, clean, protocol=crop4) == metrics.psnr(degraded[inside], clean[inside])
    assert metrics.ssim(degraded, clean, protocol=crop4) == metrics.ssim(degraded[inside], clean[inside])
    assert metrics.psnr(degraded, clean, protocol=crop4) != metrics.psnr(degraded, clean)


def test_the_y_protocol_sees_luma_of_bt601() -> None:
    from skimage.color import rgb2ycbcr
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    clean = photo(1)
    degraded = worse(clean)
    ours, theirs = rgb2ycbcr(degraded)[..., 0], rgb2ycbcr(clean)[..., 0]
    assert metrics.psnr(degraded, clean, protocol=PROTOCOLS["y"]) == pytest.approx(
        peak_signal_noise_ratio(theirs, ours, data_range=255), abs=1e-9
    )
    assert metrics.ssim(degraded, clean, protocol=PROTOCOLS["y"]) == pytest.approx(
        structural_similarity(
            theirs, ours, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        ),
        abs=1e-9,
    )


def test_equal_photos_have_ssim_one_and_no_finite_psnr() -> None:
    clean = photo(2)
    assert metrics.psnr(clean, clean.copy()) == float("inf")
    assert metrics.ssim(clean, clean.copy()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("side", [1, 10])
def test_a_photo_smaller_than_the_window_has_no_ssim_and_says_so(side: int) -> None:
    small = np.zeros((side, 40, 3), np.uint8)
    with pytest.raises(DataError, match=f"40 x {side} pixels are too few for SSIM"):
        metrics.ssim(small, small)


def test_a_border_that_leaves_nothing_is_named() -> None:
    small = np.zeros((8, 40, 3), np.uint8)
    with pytest.raises(DataError, match="nothing inside a border of 4"):
        metrics.psnr(small, small, protocol=PROTOCOLS["rgb-crop4"])


def test_lpips_without_its_weights_names_file_and_flag(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"alexnet_features\.safetensors: not there; .*--metric-weights"):
        metrics.load_lpips(tmp_path)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the weights of LPIPS are not in ../shared/data/weights")
def test_lpips_is_that_of_the_official_package() -> None:
    lpips = metrics.load_lpips(WEIGHTS)
    clean = photo(3, 96, 128)
    # the package lpips 0.1.4 gives this for the same two photos
    assert lpips(worse(clean, 30), clean) == pytest.approx(0.3042234, abs=1e-5)
    assert lpips(clean, clean) == 0


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the weights of LPIPS are not in ../shared/data/weights")
def test_lpips_takes_alexnet_from_the_cache_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from safetensors.torch import load_file

    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    alexnet = {**load_file(WEIGHTS / metrics.LPIPS_FILES[0]), "classifier.1.bias": torch.zeros(4096)}
    torch.save(alexnet, tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    clean = photo(3, 96, 128)
    assert metrics.load_lpips()(worse(clean, 30), clean) == pytest.approx(0.3042234, abs=1e-5)


def test_the_frechet_distance_is_that_of_its_formula() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    for photos in (4, 30):  # fewer than features, and more
        a = rng.normal(size=(photos, 6)) @ mixing
        b = rng.normal(size=(photos + 3, 6)) + 1
        product = np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)
        wanted = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(
            np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * sqrtm(product).real
        )
        assert metrics.frechet(a, b) == pytest.approx(wanted, rel=1e-4)
    assert metrics.frechet(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.raises(DataError, match="needs two photos"):
        metrics.frechet(a[:1], b)


def test_fid_without_its_weights_names_the_file_and_where_it_was_sought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(
        DataError, match=f"{tmp_path}/{metrics.FID_FILE} and .*torch/hub/checkpoints"
    ) as caught:
        metrics.load_inception(tmp_path)
    assert "--metric-weights" in str(caught.value)


def test_other_features_are_not_called_fid(tmp_path: Path) -> None:
    (tmp_path / metrics.FID_FILE).write_bytes(b"another network")
    with pytest.raises(DataError, match="instead of 6726825d; on other features it is not FID"):
        metrics.load_inception(tmp_path)


@pytest.mark.torch
@pytest.mark.slow
def test_fid_sees_what_torch_fidelity_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # the real weights cannot be had here: a network of random ones, under the name of the file
    path = tmp_path / metrics.FID_FILE
    torch.save({}, path)
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(network.state_dict(), path)
    monkeypatch.setattr(metrics, "_FID_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    found = metrics.load_inception(tmp_path)(photo(0))
    wanted = network(torch.from_numpy(photo(0).transpose(2, 0, 1)[None].copy()))[0][0].numpy()
    np.testing.assert_array_equal(found, wanted)
    assert found.shape == (2048,)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the weights of LPIPS are not in ../shared/data/weights")
def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    for name in metrics.LPIPS_FILES:
        (tmp_path / name).symlink_to(WEIGHTS / "lpips_vgg_v0.1.safetensors")
    with pytest.raises(DataError, match="weights of LPIPS do not fit"):
        metrics.load_lpips(tmp_path)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the weights of LPIPS are not in ../shared/data/weights")
def test_a_file_that_lacks_layers_is_refused_instead_of_measuring_with_random_ones(tmp_path: Path) -> None:
    for name in metrics.LPIPS_FILES:
        (tmp_path / name).symlink_to(WEIGHTS / "lpips_alex_v0.1.safetensors")
    with pytest.raises(DataError, match=r"10 weights missing \(net\.slice1\.0\.bias"):
        metrics.load_lpips(tmp_path)
