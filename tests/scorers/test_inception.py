"""`inception` and `inception_patch` on torch-fidelity's network with random weights; FID and KID against its own."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from torch_fidelity import feature_extractor_inceptionv3, metric_fid, metric_kid

from pipeline import artifacts
from pipeline.benchmarking import distances
from pipeline.benchmarking.scorers import inception, table

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The file of a network with random weights, whose layers keep the scale of their input."""
    network = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "load_state_dict", lambda self, state: None)
        patch.setattr(torch, "load", lambda *args, **kwargs: {})
        model = network("random", ["2048"], feature_extractor_weights_path="none")
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def loaded(weights):
    """Both extractors by their name, with the random file as the right one."""
    digest = artifacts.file_digest(weights).removeprefix("sha256:")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "WEIGHT", replace(inception.WEIGHT, sha256=digest))
        return {name: table.find(name).load({"inception": weights}, CPU) for name in ("inception", "inception_patch")}


def pictures(*sizes: tuple[int, int], seed: int = 0) -> list[Image.Image]:
    """Coarse random images, width and height each."""
    generator = np.random.default_rng(seed)
    coarse = [generator.integers(0, 256, (4, 4, 3), dtype=np.uint8) for _ in sizes]
    return [Image.fromarray(values).resize(size) for values, size in zip(coarse, sizes, strict=True)]


def test_images_of_any_sizes_have_features_that_repeat(loaded):
    extractor, images = loaded["inception"], pictures((320, 400), (64, 48), (299, 299))
    found = extractor.features(images)
    assert found.shape == (3, 2048) and found.dtype == np.float32 and np.isfinite(found).all()
    assert np.abs(found[0] - found[1]).max() > 0.01 and np.abs(found[1] - found[2]).max() > 0.01
    alone = extractor.features(images[:1])
    np.testing.assert_array_equal(extractor.features(images[:1]), alone)
    np.testing.assert_allclose(alone, found[:1], rtol=1e-3, atol=1e-3)


def test_a_patch_has_the_features_of_its_pixels(loaded):
    (image,) = pictures((310, 305))
    patch = loaded["inception_patch"].features([image])
    np.testing.assert_array_equal(patch, loaded["inception"].features([image.crop((5, 3, 304, 302))]))
    assert not np.array_equal(patch, loaded["inception"].features([image]))
    with pytest.raises(ValueError, match="got width 298 and height 400"):
        loaded["inception_patch"].features(pictures((298, 400)))


class Tensors(torch.utils.data.Dataset):
    def __init__(self, images: list[Image.Image]):
        self.images = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.images[i]


def test_kid_of_images_is_torch_fidelity_s_where_nothing_is_resized(loaded, weights):
    first, second = pictures((299, 299), (299, 299), seed=1), pictures((299, 299), (299, 299), seed=2)
    expected = torch_fidelity.calculate_metrics(
        input1=Tensors(first),
        input2=Tensors(second),
        cuda=False,
        kid=True,
        kid_subset_size=2,
        kid_subsets=1,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        verbose=False,
        cache=False,
        save_cpu_ram=True,
    )
    features = [loaded["inception"].features(images) for images in (first, second)]
    mean, _ = distances.kid(*features, 2, 1, seed=0)
    assert mean == pytest.approx(expected[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-3)


@pytest.mark.parametrize("rows, dimension", [(100, 20), (30, 50)])
def test_fid_is_torch_fidelity_s(rows, dimension):
    generator = np.random.default_rng(0)
    first, second = (
        generator.normal(size=(rows, dimension)) @ generator.normal(size=(dimension, dimension)) for _ in range(2)
    )
    statistics = [metric_fid.fid_features_to_statistics(torch.from_numpy(values)) for values in (first, second)]
    expected = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID]
    assert distances.fid(first, second) == pytest.approx(expected, rel=1e-5)


def test_kid_is_torch_fidelity_s():
    first, second = np.random.default_rng(0).normal(size=(2, 60, 20))
    expected = metric_kid.kid_features_to_metric(
        torch.from_numpy(first), torch.from_numpy(second), kid_subset_size=20, kid_subsets=30, rng_seed=5, verbose=False
    )
    mean, spread = expected[metric_kid.KEY_METRIC_KID_MEAN], expected[metric_kid.KEY_METRIC_KID_STD]
    assert distances.kid(first, second, 20, 30, seed=5) == pytest.approx((mean, spread), rel=1e-6)


def test_the_weights_are_torch_fidelity_s_release():
    (weight,) = inception.INCEPTION.weights
    assert weight.hub == feature_extractor_inceptionv3.URL_INCEPTION_V3
    assert weight.sha256.startswith(Path(weight.hub).stem.rpartition("-")[2])  # the name ends with the digest's start


class Code:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["inception", "inception_patch"])
def test_code_in_another_file_does_not_run(tmp_path, name):
    path, trace = tmp_path / "pt_inception-2015-12-05-6726825d.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Code(trace)))
    with pytest.raises(ValueError, match="the weights inception must be https.* with the sha256 6726825d.*, got"):
        table.find(name).load({"inception": path}, CPU)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()  # it would have run
