"""The packages of the extra `benchmarks` load, with the names that the scorers use."""

from importlib.metadata import version

from packaging.version import Version


def test_the_packages_are_those_that_the_scorers_were_written_for():
    assert Version(version("torch_fidelity")) >= Version("0.4")
    assert Version(version("open_clip_torch")) >= Version("3.3")


def test_torchvision_resizes():
    import torch
    from torchvision.transforms.functional import resize

    assert resize(torch.zeros(1, 3, 8, 8), [4, 4]).shape == (1, 3, 4, 4)
