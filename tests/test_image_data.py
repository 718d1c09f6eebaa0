"""CIFAR-10 from files as they are distributed and from JPEG archives, whole and damaged."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fastlif.data import CIFAR10_CLASSES, ImageDataset, SampleSource, read_cifar10

BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
PER_BATCH = 4


def batch_content(number: int) -> tuple[NDArray[np.uint8], list[int]]:
    generator = np.random.default_rng(number)
    data = generator.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8)
    return data, generator.integers(0, 10, PER_BATCH).tolist()


def write_batches(folder: Path, protocol: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(BATCHES):
        data, labels = batch_content(number)
        content = {b"batch_label": b"a batch", b"labels": labels, b"data": data}
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    return folder


def python2_batch() -> bytes:
    """A batch of two images as Python 2 pickled it: keys and the array's bytes are strings there,
    and the array is rebuilt by the function's name of that time."""
    data = bytes(range(256)) * 24
    long_string = b"T" + len(data).to_bytes(4, "little") + data
    return (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        b"U\x01b\x87R(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|"
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + long_string + b"tbU\x06labels]"
        b"(K\x03K\x08eu."
    )


def jpeg(pixels: NDArray[np.uint8], quality: int = 90) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
    return file.getvalue()


def smooth_images(n_images: int) -> list[NDArray[np.uint8]]:
    """Images (row, column, RGB) that JPEG hardly changes: a slope of another colour in each."""
    row, column = np.mgrid[:32, :32]
    return [
        np.stack([5 * row + 3 * number, 5 * column, 100 + row - column], axis=2).astype(np.uint8)
        for number in range(n_images)
    ]


def write_archive(path: Path, images: list[bytes], **changed: Any) -> Path:
    arrays: dict[str, Any] = {
        "jpeg_bytes": np.frombuffer(b"".join(images), dtype=np.uint8),
        "offsets": np.cumsum([0, *map(len, images)]).astype(np.int64),
        "labels": np.arange(len(images), dtype=np.uint8) % 10,
        "class_names": np.array(CIFAR10_CLASSES),
    }
    arrays.update(changed)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def write_archives(folder: Path, **changed: Any) -> Path:
    folder.mkdir(exist_ok=True)
    write_archive(folder / "cifar10_train.npz", list(map(jpeg, smooth_images(5))), **changed)
    write_archive(folder / "cifar10_test.npz", list(map(jpeg, smooth_images(3))))
    return folder


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_batches_hold_the_images_in_order(tmp_path: Path, inner: str, protocol: int) -> None:
    write_batches(tmp_path / inner, protocol)
    train, test = read_cifar10(tmp_path)
    contents = [batch_content(number) for number in range(6)]
    assert len(train) == 5 * PER_BATCH and len(test) == PER_BATCH
    expected = np.concatenate([data for data, _ in contents[:5]]).reshape(-1, 3, 32, 32)
    assert torch.equal(train.images, torch.from_numpy(expected))
    assert train.targets.tolist() == [label for _, labels in contents[:5] for label in labels]
    # Row 2, column 7 of the green channel of the test set's second image.
    assert int(test.images[1, 1, 2, 7]) == int(contents[5][0][1, 1024 + 2 * 32 + 7])


def test_batches_of_python_2(tmp_path: Path) -> None:
    pickletools.dis(python2_batch(), io.StringIO())  # a well-formed pickle
    for name in BATCHES:
        (tmp_path / name).write_bytes(python2_batch())
    train, _ = read_cifar10(tmp_path)
    assert train.targets.tolist() == [3, 8] * 5
    assert train.images[1].flatten().tolist() == list(range(256)) * 12


def test_selected_images_lie_between_minus_one_and_one(tmp_path: Path) -> None:
    train, _ = read_cifar10(write_batches(tmp_path))
    source: SampleSource = train
    assert source.n_classes == 10 and source.features == (3, 32, 32)
    assert source.n_bytes == 20 * 3072
    images, targets = source.select(torch.tensor([7, 0]))
    assert isinstance(images, torch.Tensor)
    assert images.dtype == torch.float32
    expected = train.images[torch.tensor([7, 0])].double() / 255 * 2 - 1
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=1e-6)
    assert float(images.min()) == -1.0 and float(images.max()) == 1.0
    assert targets.tolist() == train.targets[[7, 0]].tolist()
    # The same images again: nothing was changed in place, and nothing is drawn.
    again, _ = source.select(torch.tensor([7, 0]), torch.device("cpu"), torch.Generator())
    assert isinstance(again, torch.Tensor)
    assert torch.equal(images, again)


def test_archives_are_decoded(tmp_path: Path) -> None:
    train, test = read_cifar10(write_archives(tmp_path))
    assert len(train) == 5 and len(test) == 3
    assert train.targets.tolist() == [0, 1, 2, 3, 4]
    for number, pixels in enumerate(smooth_images(5)):
        with Image.open(io.BytesIO(jpeg(pixels))) as image:
            decoded = np.asarray(image).transpose(2, 0, 1)
        assert torch.equal(train.images[number], torch.from_numpy(decoded.copy()))
        # Close to what was encoded, so that neither channels nor axes are exchanged.
        original = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.int16))
        assert (train.images[number].short() - original).abs().float().mean() < 4


def test_the_first_samples_alone(tmp_path: Path) -> None:
    whole, _ = read_cifar10(write_batches(tmp_path / "a"))
    train, test = read_cifar10(tmp_path / "a", n_samples=6)
    assert len(train) == 6 and len(test) == PER_BATCH
    assert torch.equal(train.images, whole.images[:6])
    assert train.targets.tolist() == whole.targets[:6].tolist()
    train, test = read_cifar10(write_archives(tmp_path / "b"), n_samples=2)
    assert len(train) == 2 and len(test) == 2
    with pytest.raises(ValueError, match="n_samples must be at least 1, or None for all, got 0"):
        read_cifar10(tmp_path / "a", n_samples=0)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data folder at .*none"):
        read_cifar10(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="CIFAR-10 .data_batch_1 .. data_batch_5 and test"):
        read_cifar10(tmp_path)
    write_batches(tmp_path / "a")
    (tmp_path / "a" / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file at .*data_batch_3"):
        read_cifar10(tmp_path / "a")
    write_archives(tmp_path / "b")
    (tmp_path / "b" / "cifar10_test.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file \*test\*\.npz"):
        read_cifar10(tmp_path / "b")
    with pytest.raises(ValueError, match="once, found them in a, b"):
        read_cifar10(tmp_path)


class TestDamagedBatches:
    def check(self, folder: Path, *words: str) -> None:
        with pytest.raises(ValueError) as caught:
            read_cifar10(folder)
        message = str(caught.value)
        assert str(folder / "data_batch_2") in message
        for word in words:
            assert word in message

    def replace(self, folder: Path, **changed: Any) -> Path:
        write_batches(folder)
        data, labels = batch_content(1)
        content: dict[bytes, Any] = {b"labels": labels, b"data": data}
        content.update({name.encode(): value for name, value in changed.items()})
        content = {name: value for name, value in content.items() if value is not None}
        (folder / "data_batch_2").write_bytes(pickle.dumps(content, protocol=2))
        return folder

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
    def test_truncated(self, tmp_path: Path, share: float) -> None:
        path = write_batches(tmp_path) / "data_batch_2"
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        self.check(tmp_path, "damaged or truncated near byte")

    def test_nothing_but_arrays_is_unpickled(self, tmp_path: Path) -> None:
        write_batches(tmp_path)
        victim = tmp_path / "made"
        content = b"cpathlib\nPath\n(V" + str(victim).encode() + b"\ntRq\x00(dp1\n."
        (tmp_path / "data_batch_2").write_bytes(content)
        self.check(tmp_path, "pathlib.Path has no place in a batch")
        (tmp_path / "data_batch_2").write_bytes(pickle.dumps(os.getcwd))
        self.check(tmp_path, "getcwd has no place in a batch")

    def test_wrong_content(self, tmp_path: Path) -> None:
        self.check(self.replace(tmp_path, data=None), "'data' is missing")
        self.check(self.replace(tmp_path, labels=None), "'labels' is missing")
        self.check(self.replace(tmp_path, data=np.zeros((4, 3071), np.uint8)), "(4, 3071)")
        self.check(self.replace(tmp_path, data=np.zeros((4, 3072))), "float64")
        self.check(self.replace(tmp_path, data=[1, 2]), "list")
        self.check(self.replace(tmp_path, labels=[0, 1, 2]), "for each of 4 images, got (3,)")
        self.check(self.replace(tmp_path, labels=[0, 1, 2, 10]), "sample 3", "0..9, got 10")
        (tmp_path / "data_batch_2").write_bytes(pickle.dumps([1, 2]))
        self.check(tmp_path, "must hold a dictionary, got list")


class TestDamagedArchives:
    def check(self, folder: Path, *words: str) -> None:
        with pytest.raises(ValueError) as caught:
            read_cifar10(folder)
        message = str(caught.value)
        assert str(folder / "cifar10_train.npz") in message
        for word in words:
            assert word in message

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_truncated(self, tmp_path: Path, share: float) -> None:
        path = write_archives(tmp_path) / "cifar10_train.npz"
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        self.check(tmp_path, "not a readable archive")

    def test_flipped_byte(self, tmp_path: Path) -> None:
        path = write_archives(tmp_path) / "cifar10_train.npz"
        content = bytearray(path.read_bytes())
        content[1500] ^= 0xFF  # within the images
        path.write_bytes(content)
        self.check(tmp_path, "not a readable archive", "CRC")

    def test_truncated_image(self, tmp_path: Path) -> None:
        write_archives(tmp_path)
        images = list(map(jpeg, smooth_images(5)))
        images[3] = images[3][:-60]
        start = sum(map(len, images[:3]))
        write_archive(tmp_path / "cifar10_train.npz", images)
        self.check(tmp_path, f"image 3 (bytes {start}..{start + len(images[3])})", "JPEG")

    def test_wrong_image(self, tmp_path: Path) -> None:
        write_archives(tmp_path)
        images = list(map(jpeg, smooth_images(5)))
        images[1] = jpeg(np.zeros((32, 31, 3), np.uint8))
        write_archive(tmp_path / "cifar10_train.npz", images)
        self.check(tmp_path, "image 1", "got shape (32, 31, 3)")
        images[1] = jpeg(np.zeros((32, 32), np.uint8))
        write_archive(tmp_path / "cifar10_train.npz", images)
        self.check(tmp_path, "image 1", "in RGB, got shape (32, 32)")

    def test_wrong_arrays(self, tmp_path: Path) -> None:
        size = sum(len(jpeg(pixels)) for pixels in smooth_images(5))
        bad_offsets = np.array([0, 10, 5, 20, 30, size])
        cases: list[tuple[dict[str, Any], str]] = [
            ({"labels": None}, "no array 'labels'"),
            ({"labels": np.zeros(4, np.uint8)}, "'offsets' must have one entry more"),
            ({"labels": np.array([0, 1, 2, 3, 77])}, "sample 4: label must lie in 0..9, got 77"),
            ({"labels": np.zeros(0, np.uint8), "offsets": np.zeros(1, int)}, "holds no sample"),
            ({"labels": np.zeros(5)}, "'labels' must be a one-dimensional array"),
            ({"offsets": np.zeros((2, 3), int)}, "'offsets' must be a one-dimensional array"),
            ({"offsets": bad_offsets}, "sample 1: 'offsets' must not fall"),
            ({"offsets": np.array([0, 1, 2, 3, 4, 5])}, f"number of entries, {size}, got 0..5"),
            ({"offsets": np.array([7, 8, 9, 10, 11, size])}, f"{size}, got 7..{size}"),
            ({"jpeg_bytes": np.zeros(size, np.uint16)}, "'jpeg_bytes' must be uint8, got uint16"),
        ]
        for changed, complaint in cases:
            self.check(write_archives(tmp_path, **changed), complaint)


def test_parts_of_a_data_set_must_fit() -> None:
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(TypeError, match="images must be uint8"):
        ImageDataset(images.float(), torch.zeros(3).long(), ("a",))
    with pytest.raises(ValueError, match="one target each"):
        ImageDataset(images, torch.zeros(2).long(), ("a",))
    with pytest.raises(ValueError, match=r"targets must lie in 0\.\.0, got 0\.\.1"):
        ImageDataset(images, torch.tensor([0, 1, 0]), ("a",))
    with pytest.raises(ValueError, match="at least one sample"):
        ImageDataset(images[:0], torch.zeros(0).long(), ("a",))


def test_real_images() -> None:
    folder = os.environ.get("FASTLIF_DATA")
    if not folder:
        pytest.skip("set FASTLIF_DATA to a folder with CIFAR-10 to run this")
    try:
        train, test = read_cifar10(folder, n_samples=500)
    except FileNotFoundError as error:
        pytest.skip(f"FASTLIF_DATA has no CIFAR-10: {error}")
    # The first images of the training set: a frog, two trucks, a deer, two automobiles.
    assert [CIFAR10_CLASSES[label] for label in train.targets[:6].tolist()] == [
        "frog", "truck", "truck", "deer", "automobile", "automobile",
    ]  # fmt: skip
    assert test.targets[:4].tolist() == [3, 8, 8, 0]
    images, _ = train.select(torch.arange(500))
    assert -0.15 < float(images.mean()) < 0.05  # of all training images: -0.05
    assert 0.45 < float(images.std()) < 0.55
    # Photographs: neighbouring pixels are alike, also from row to row.
    for axis in (2, 3):
        neighbours = images.diff(dim=axis).abs().mean()
        assert float(neighbours) < 0.15
