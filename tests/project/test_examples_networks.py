"""The examples that train a network on digits, their modules, and the two-dimensional example.

The scripts are run as a reader would run them. `_cnn.py` and `_digits.py` are imported from their
folder, as the scripts do.
"""

from __future__ import annotations

import gzip
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NUMBER = r"(\d\S*)"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that imports a file of examples/ by name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for name in ("_common", "_cnn", "_digits"):
        sys.modules.pop(name, None)


# --- the network -------------------------------------------------------------------------------


def network_of(module: Any, backend: Backend, side: int, dtype: str = "float64") -> Any:
    name = "jax" if backend.is_jax else backend.value
    lib = module("_common").Library(name, backend.xp)
    return module("_cnn").CNN(lib, side, dtype, channels=(2, 3))


def some_digits(side: int, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.random((count, side * side)), rng.integers(0, 10, count)


@pytest.mark.parametrize("side", [6, 17])
def test_gradient(module: Any, side: int) -> None:
    """Both kernels: 3 with stride 1, and 5 with stride 2, which leaves a row of pixels over."""
    network = network_of(module, Backend.NUMPY, side)
    batch = network.batch(*some_digits(side))
    check = lx.check_gradient(network.value_and_gradient, network.start(), True, (batch,))
    assert check.error < 1e-7


@pytest.mark.parametrize("side", [8, 17])
def test_every_library_agrees(module: Any, backend: Backend, side: int) -> None:
    results = []
    for each in (Backend.NUMPY, backend):
        network = network_of(module, each, side)
        value, layers = network.value_and_gradient(
            network.start(), network.batch(*some_digits(side))
        )
        results.append([value, *(layer[k] for layer in layers for k in ("weight", "bias"))])
    for wanted, found in zip(*results, strict=True):
        assert backend.xp.float64 == found.dtype
        np.testing.assert_allclose(backend.to_numpy(found), wanted, rtol=1e-12, atol=1e-14)


def convolved(image: np.ndarray, layer: dict[str, Any], kernel: int, stride: int) -> np.ndarray:
    """(side, side, c) -> (s, s, d), one pixel at a time."""
    weight = np.asarray(layer["weight"]).reshape(kernel, kernel, image.shape[2], -1)
    s = (len(image) - kernel) // stride + 1
    out = np.empty((s, s, weight.shape[3]))
    for i, j in np.ndindex(s, s):
        patch = image[i * stride : i * stride + kernel, j * stride : j * stride + kernel]
        out[i, j] = np.einsum("ijc,ijcd->d", patch, weight) + layer["bias"]
    return np.tanh(out)


@pytest.mark.parametrize(("side", "kernel", "stride"), [(8, 3, 1), (28, 5, 2)])
def test_scores(module: Any, side: int, kernel: int, stride: int) -> None:
    network = network_of(module, Backend.NUMPY, side)
    params = network.start(seed=3)
    for layer in params:
        layer["bias"] = layer["bias"] + 0.1
    images, labels = some_digits(side, 2)
    scores = network.scores(params, images)
    losses = []
    for image, label, found in zip(images, labels, scores, strict=True):
        h = image.reshape(side, side, 1)
        for layer in params[:-1]:
            h = convolved(h, layer, kernel, stride)
        wanted = h.ravel() @ params[-1]["weight"] + params[-1]["bias"]
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)
        losses.append(np.log(np.exp(wanted).sum()) - wanted[label])
    value, _ = network.value_and_gradient(params, network.batch(images, labels))
    assert float(value) == pytest.approx(np.mean(losses), rel=1e-12)


def test_large_scores_do_not_overflow(module: Any) -> None:
    network = network_of(module, Backend.NUMPY, 8, "float32")
    params = network.start()
    params[-1]["bias"] = network.array(np.arange(10.0) * 100.0)
    images, _ = some_digits(8, 2)
    value, gradient = network.value_and_gradient(params, network.batch(images, [9, 0]))
    assert float(value) == pytest.approx(450.0, rel=0.01)
    assert all(np.isfinite(leaf).all() for layer in gradient for leaf in layer.values())


def test_accuracy(module: Any) -> None:
    network = network_of(module, Backend.NUMPY, 8)
    images, _ = some_digits(8, 1100)    # more than one piece
    best = np.argmax(network.scores(network.start(), images), axis=1)
    labels = np.where(np.arange(1100) % 4 == 0, (best + 1) % 10, best)
    assert module("_cnn").accuracy(network, network.start(), images, labels) == 0.75


# --- the digits --------------------------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    header = b"\0\0\x08" + bytes([values.ndim]) + np.asarray(values.shape, ">i4").tobytes()
    return header + values.astype(np.uint8).tobytes()


def write_mnist(folder: Path, count: int) -> np.ndarray:
    """Write files in the format of MNIST: noise, and a bright bar at a different place per digit.

    The training images are gzipped, the other files are not.
    """
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        labels = np.arange(count) % 10
        images = rng.integers(0, 100, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[4 : 24, 4 + 2 * label : 6 + 2 * label] += 150
        packed = idx(images)
        if part == "train":
            first = images
            (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(packed))
        else:
            (folder / "t10k-images-idx3-ubyte").write_bytes(packed)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return first


def test_idx_files(module: Any, tmp_path: Path) -> None:
    images = write_mnist(tmp_path, 12)
    train, test = module("_digits").digits(tmp_path)
    assert train.images.shape == test.images.shape == (12, 784)
    assert train.images.dtype == np.float32
    np.testing.assert_array_equal(np.rint(train.images * 255.0), images.reshape(12, -1))
    assert train.labels.tolist() == [*range(10), 0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing; wanted an idx file of unsigned bytes, which begins with 00 00"),
        (b"\0\0\x0d\x01\0\0\0\x01abcd", "begins with 00 00 0d 01"),
        (b"\0\0\x08\x03\0\0\0\x01", "ends within its header; wanted 3 lengths"),
        (b"\0\0\x08\x02\0\0\0\x02\0\0\0\x02abc", r"holds 3 numbers; wanted 4, .* \(2, 2\)"),
    ],
)
def test_bad_idx_files(module: Any, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ValueError, match=f"bad {message}"):
        module("_digits").read_idx(tmp_path / "bad")


def test_files_that_do_not_belong_together(module: Any, tmp_path: Path) -> None:
    write_mnist(tmp_path, 12)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(5)))
    with pytest.raises(ValueError, match=r"\(12, 28, 28\) and labels \(5,\); wanted"):
        module("_digits").digits(tmp_path)


def test_small_digits(module: Any) -> None:
    pytest.importorskip("sklearn")
    train, test = module("_digits").digits(None)
    assert len(train.labels) + len(test.labels) == 1797
    both = np.concatenate([train.images, test.images])
    assert both.min() == 0.0 and both.max() == 1.0 and both.shape[1] == 64
    assert len(np.unique(both, axis=0)) == 1797    # no image is in both sets


def test_without_digits(
    module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    digits: ModuleType = module("_digits")
    with pytest.raises(SystemExit, match=r"wanted a folder with train-images-idx3-ubyte or .*gz"):
        digits.digits(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="scikit-learn, which is not installed"):
        digits.digits(None)


# --- the scripts -------------------------------------------------------------------------------


def run(script: str, *options: str | Path) -> str:
    """What a script prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / script), "--quick", *map(str, options)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_picture(path: Path) -> bool:
    content = path.read_bytes()
    return content.startswith(b"\x89PNG") and len(content) > 20_000


def test_two_dimensions(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = run("two_dimensions.py", "--out", tmp_path)
    for name in ("rosenbrock", "rastrigin"):
        assert is_picture(tmp_path / f"two_dimensions_{name}.png")
    found = re.findall(rf"^  (.+?) +\d+ iterations +(\d+) evaluations  value {NUMBER}", shown, re.M)
    names = ["gradient descent, rate", "gradient descent, line search", "L-BFGS"]
    assert all(row[0].startswith(name) for row, name in zip(found, 2 * names, strict=True))
    values = [float(value) for _, _, value in found]
    assert values[2] < 1e-12 < values[1] < values[0] < 24.2    # the value at the start
    assert int(found[2][1]) < 100 < int(found[1][1])
    assert all(value < 30.0 for value in values[3:])    # the start has 47.8


def fixed_batch(*options: str | Path) -> dict[str, tuple[float, float]]:
    """The loss of each method, and its test accuracy."""
    shown = run("cnn_fixed_batch.py", *options)
    found = re.findall(rf"^  (\S+) .* loss +{NUMBER} .*accuracy: {NUMBER}%", shown, re.M)
    return {name: (float(loss), float(right)) for name, loss, right in found}


@pytest.mark.parametrize("library", ["numpy", "jax"])
def test_fixed_batch(library: str, tmp_path: Path) -> None:
    for needed in ("matplotlib", "sklearn", library):
        pytest.importorskip(needed)
    found = fixed_batch("--backend", library, "--out", tmp_path)
    assert list(found) == ["SGD", "Adam", "L-BFGS"]
    assert all(loss < 0.01 and right > 85.0 for loss, right in found.values()), found
    assert 100.0 * found["L-BFGS"][0] < min(found["SGD"][0], found["Adam"][0])
    assert is_picture(tmp_path / "cnn_fixed_batch.png")


def test_fixed_batch_of_files(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    write_mnist(tmp_path, 250)
    found = fixed_batch("--backend", "torch", "--data", tmp_path, "--out", tmp_path)
    assert len(found) == 3
    assert found["L-BFGS"][0] < 1e-3 and found["L-BFGS"][1] > 85.0, found


def test_minibatches(tmp_path: Path) -> None:
    for needed in ("matplotlib", "sklearn"):
        pytest.importorskip(needed)
    shown = run("cnn_minibatches.py", "--out", tmp_path)
    found = re.findall(
        rf"^(\S.*?) +(\d+) +(\d+) +[\d.]+ +{NUMBER} +{NUMBER}%$", shown, re.M
    )
    names = ["SGD", "Adam", "L-BFGS, ten updates per batch", "L-BFGS, one update per batch"]
    names.append("StochasticLBFGS")
    assert [row[0] for row in found] == names
    # Ten batches in each of two epochs.
    assert [int(row[1]) for row in found] == [20, 20, 200, 20, 20]
    assert [int(row[2]) for row in found][:2] == [20, 20]
    assert int(found[2][2]) > 220 and 40 <= int(found[3][2]) < 80
    assert int(found[4][2]) == 30    # a pair every two steps, and one after the first
    # At first, the loss is ln 10 = 2.3 and one digit in ten is right.
    assert all(float(row[3]) < 0.8 and float(row[4]) > 80.0 for row in found), found
    before, after = re.findall(rf"from {NUMBER} to {NUMBER} on average", " ".join(shown.split()))[0]
    assert float(before) == pytest.approx(float(found[2][3]), rel=0.05)
    assert float(after) < 0.1 * float(before)
    assert is_picture(tmp_path / "cnn_minibatches.png")
