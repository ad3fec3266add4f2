"""Event recordings in the true layouts of the downloads: frames by hand count, fixed splits, cache, bad files."""

from __future__ import annotations

import multiprocessing
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer

from lightning_tspike import TernarySNNModule
from lightning_tspike.data import DataError, EventDataModule
from lightning_tspike.data.event_frames import FrameAugmentation

tonic = pytest.importorskip("tonic")


def set_up(dataset: str, root: Path, **options: Any) -> EventDataModule:
    data = EventDataModule(dataset, root=str(root), **options)
    data.prepare_data()
    data.setup("fit")
    return data


def write_nmnist(file: Path, x: Any, y: Any, p: Any, t: Any) -> None:
    """A file of N-MNIST: 5 bytes for each event, x, y, polarity in a bit before 23 bits of microseconds."""
    x, y, p, t = (np.asarray(values, dtype=np.uint32) for values in (x, y, p, t))
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = np.stack([x, y, (p << 7) | (t >> 16), (t >> 8) & 255, t & 255], axis=1)
    file.write_bytes(rows.astype(np.uint8).tobytes())


def nmnist(root: Path, per_class: int = 2, classes: int = 2) -> Path:
    """A small dataset in N-MNIST's layout; gives the folder of its training recordings."""
    rng = np.random.default_rng(0)
    for split, count in (("Train", per_class), ("Test", 1)):
        for digit in range(classes):
            for i in range(count):
                t = np.sort(rng.integers(0, 300_000, 200))
                x, y = rng.integers(0, 34, (2, 200))
                write_nmnist(root / f"NMNIST/{split}/{digit}/{i:05}.bin", x, y, rng.integers(0, 2, 200), t)
    return root / "NMNIST/Train"


def test_frames_and_labels_are_mixed_for_training_alone(tmp_path: Path) -> None:
    nmnist(tmp_path, per_class=4)
    torch.manual_seed(0)
    data = set_up("NMNIST", tmp_path, mixup=0.8, cutmix=1.0, val_share=0.0, batch_size=8)
    frames, labels = next(iter(data.train_dataloader()))
    assert frames.shape == (8, 4, 2, 34, 34)
    assert labels.shape == (8, 2)
    assert ((labels > 0).sum(1) == 2).any()
    assert next(iter(data.val_dataloader()))[1].ndim == 1


@pytest.fixture(scope="session")
def sample(shared: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some real recordings of N-MNIST: 12 for training and 4 for testing of each of three digits."""
    folder = tmp_path_factory.mktemp("events")
    with zipfile.ZipFile(shared("data/nmnist_small.zip")) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".bin"))
        for digit in "035":
            for split, count in (("Train", 12), ("Test", 4)):
                archive.extractall(folder, [n for n in names if f"/{split}/{digit}/" in n][:count])
    return folder


def events_of(file: Path) -> tuple[np.ndarray, ...]:
    """Events x, y, p, t as the dataset's page describes the bytes."""
    rows = np.frombuffer(file.read_bytes(), np.uint8).reshape(-1, 5).astype(int)
    return rows[:, 0], rows[:, 1], rows[:, 2] >> 7, ((rows[:, 2] & 127) << 16) | (rows[:, 3] << 8) | rows[:, 4]


@pytest.mark.parametrize("slice_by", ["time", "events"])
def test_frames_count_events(sample: Path, slice_by: Any) -> None:
    """Frame by frame against a count of the file's bytes."""
    data = set_up("NMNIST", sample, timesteps=5, slice_by=slice_by, val_share=0.0)
    assert [len(part) for part in (data.train_set, data.test_set)] == [36, 12]
    assert data.val_set is data.test_set
    assert data.class_names == ["0 - zero", "3 - three", "5 - five"]
    assert data.preprocessing["input_size"] == [2, 34, 34]
    assert data.preprocessing["frames"] == {"timesteps": 5, "slice_by": slice_by, "sensor_size": [34, 34, 2]}
    for index in (0, 35):
        source = data.train_set.source
        frames, label = data.train_set[index]
        assert f"/{'035'[label]}/" in source.filename(index)
        x, y, p, t = events_of(Path(source.filename(index)))
        expected = torch.zeros(5, 2, 34, 34)
        width = (t[-1] - t[0]) // 5 if slice_by == "time" else len(t) // 5
        place = (t - t[0]) // width if slice_by == "time" else np.arange(len(t)) // width
        for frame, polarity, row, column in zip(place, p, y, x, strict=True):
            if frame < 5:  # what is left over at the end belongs to no frame
                expected[frame, polarity, row, column] += 1
        assert torch.equal(frames, expected)
        assert expected.sum() > 1000


def test_smaller_frames(sample: Path) -> None:
    """Each event goes to the pixel that its own falls into: no event is lost, pixel 2 of 34 lies in pixel 1 of 17."""
    whole = set_up("NMNIST", sample, cache=None)
    small = set_up("NMNIST", sample, size=17, cache=None)
    assert small.preprocessing["input_size"] == [2, 17, 17]
    frames, _ = whole.train_set[3]
    pooled = frames.unflatten(3, (17, 2)).unflatten(2, (17, 2)).sum((3, 5))
    assert torch.equal(small.train_set[3][0], pooled)


def test_cache_gives_the_same_frames(sample: Path, tmp_path: Path) -> None:
    fresh = set_up("NMNIST", sample, cache=None)
    cache = tmp_path / "frames"
    kept = set_up("NMNIST", sample, cache=str(cache), num_workers=1)
    assert len(list(cache.glob("NMNIST*"))) == 2  # training and test recordings
    for one, other in ((fresh.train_set, kept.train_set), (fresh.test_set, kept.test_set)):
        assert len(one) == len(other)
        for i in range(len(one)):
            assert torch.equal(one[i][0], other[i][0])
            assert one[i][1] == other[i][1]


def test_cache_follows_files_and_options(tmp_path: Path) -> None:
    train = nmnist(tmp_path)
    cache = tmp_path / "frames"
    first = set_up("NMNIST", tmp_path)
    folders = set(cache.iterdir())
    set_up("NMNIST", tmp_path)
    assert set(cache.iterdir()) == folders
    set_up("NMNIST", tmp_path, timesteps=3)
    assert len(list(cache.glob("NMNIST*"))) == 4
    write_nmnist(train / "0/00000.bin", [1] * 9, [2] * 9, [1] * 9, range(9))
    changed = set_up("NMNIST", tmp_path, slice_by="events")
    again = set_up("NMNIST", tmp_path)
    assert changed.train_set.source[0][0].sum() == 8
    assert not np.array_equal(first.train_set.source[0][0], again.train_set.source[0][0])


def test_cache_left_half_filled_is_made_anew(tmp_path: Path) -> None:
    """A killed run leaves a folder of another name, which the next one replaces."""
    nmnist(tmp_path)
    set_up("NMNIST", tmp_path)
    whole = next((tmp_path / "frames").glob("NMNIST-train*"))
    partial = whole.with_name(f".{whole.name}.partial")
    whole.rename(partial)
    kept = sorted(partial.iterdir())
    kept[0].write_bytes(kept[0].read_bytes()[:10])
    kept[-1].unlink()
    data = set_up("NMNIST", tmp_path)
    assert not partial.exists()
    assert sorted(p.name for p in whole.iterdir()) == [p.name for p in kept]
    assert all(data.train_set[i][0].isfinite().all() for i in range(len(data.train_set)))


def test_runs_that_begin_together_share_a_cache(tmp_path: Path) -> None:
    nmnist(tmp_path, per_class=40)
    processes = multiprocessing.get_context("fork")
    begin = processes.Barrier(3)

    def run() -> None:
        begin.wait()
        data = set_up("NMNIST", tmp_path)
        assert all(data.train_set[i][0].sum() > 0 for i in range(len(data.train_set)))

    runs = [processes.Process(target=run) for _ in range(3)]
    for process in runs:
        process.start()
    for process in runs:
        process.join()
    assert [process.exitcode for process in runs] == [0, 0, 0]
    assert {len(list(folder.iterdir())) for folder in (tmp_path / "frames").glob("NMNIST*")} == {80, 2}


def test_cifar10_dvs_is_split_nine_to_one(tmp_path: Path) -> None:
    """Its true layout: 1,000 recordings for each of ten classes, no split; numbers in the names, not strings."""
    classes = tonic.datasets.CIFAR10DVS.classes
    for name in classes:
        folder = tmp_path / "CIFAR10DVS" / name
        folder.mkdir(parents=True)
        for i in range(1000):
            (folder / f"cifar10_{name}_{i}.aedat4").touch()
    data = set_up("CIFAR10DVS", tmp_path, timesteps=10, size=48, cache=None, val_share=0.0)
    assert (len(data.train_set), len(data.test_set), data.num_classes) == (9000, 1000, 10)
    assert data.class_names == list(classes)
    assert data.preprocessing["input_size"] == [2, 48, 48]

    def members(part: Any) -> set[str]:
        return {Path(part.source.filename(i)).name for i in part.indices}

    assert members(data.test_set) == {f"cifar10_{n}_{i}.aedat4" for n in classes for i in range(900, 1000)}
    assert members(data.train_set) == {f"cifar10_{n}_{i}.aedat4" for n in classes for i in range(900)}
    held_out = set_up("CIFAR10DVS", tmp_path, timesteps=10, cache=None, val_share=0.1)
    assert members(held_out.test_set) == members(data.test_set)
    assert members(held_out.val_set) == {f"cifar10_{n}_{i}.aedat4" for n in classes for i in range(810, 900)}
    assert len(held_out.train_set) == 8100
    with pytest.raises(DataError, match=r"cifar10_.*\.aedat4 cannot be read"):  # they are empty
        data.train_set[0]


def test_dvs_gesture_in_its_layout(tmp_path: Path) -> None:
    """Labels from file names, milliseconds to microseconds; trained with a network for a step."""
    rng = np.random.default_rng(0)
    for split in ("Train", "Test"):
        for user in ("user01_led", "user10_lab"):
            folder = tmp_path / "DVSGesture" / f"ibmGesture{split}" / user
            folder.mkdir(parents=True)
            for label in (0, 3, 10):
                x, y = rng.integers(0, 128, (2, 60))
                t = np.sort(rng.integers(0, 6000, 60))
                np.save(folder / f"{label}.npy", np.stack([x, y, rng.integers(0, 2, 60), t], axis=1).astype(float))
    data = set_up("DVSGesture", tmp_path, timesteps=4, slice_by="events", size=32, val_share=0.0, hflip=0.5, nda=True)
    assert (len(data.train_set), len(data.test_set)) == (6, 6)
    assert sorted(data.train_set.source.recordings.targets) == [0, 0, 1, 1, 2, 2]
    assert data.class_names == ["Hand clapping", "Right arm cw", "Other gestures"]
    frames, _ = data.test_set[0]
    assert frames.shape == (4, 2, 32, 32)
    assert frames.sum() == 60
    module = TernarySNNModule("tspike_resnet_small", num_classes=3, in_chans=2, timesteps=4)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, data)
    assert trainer.global_step == 1  # a batch of six


def damage(file: Path, how: str) -> str:
    """Make a recording bad; gives what the message must say."""
    if how == "cut off":
        file.write_bytes(file.read_bytes()[:-3])
        return "997 bytes are not a whole number of events of 5 bytes: the file is cut off"
    if how == "outside":
        write_nmnist(file, [3, 34, 5, 6], [1, 1, 1, 1], [0, 1, 0, 1], [1, 2, 3, 4])
        return "events outside the sensor: x runs from 3 to 34, expected 0 to 33"
    if how == "few":
        write_nmnist(file, [3, 4], [1, 1], [0, 1], [1, 2])
        return "2 events are too few for 4 frames"
    file.write_bytes(b"")
    return "0 events are too few for 4 frames"


@pytest.mark.parametrize("cache", ["frames", None])
@pytest.mark.parametrize("how", ["cut off", "outside", "few", "empty"])
def test_bad_recordings_are_named_or_left_out(tmp_path: Path, how: str, cache: str | None) -> None:
    file = nmnist(tmp_path, per_class=4) / "1/00001.bin"
    message = damage(file, how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # also from workers: nothing but the error
        data = set_up("NMNIST", tmp_path, val_share=0.0, cache=cache)
    with pytest.raises(DataError) as caught:
        list(data.train_dataloader())
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    data = set_up("NMNIST", tmp_path, val_share=0.0, cache=cache, on_error="skip")
    with pytest.warns(UserWarning, match=f"left out: .*{file.name}"):
        batches = list(data.train_dataloader())
    assert sum(len(y) for _, y in batches) == 7
    assert data.train_set.unreadable == [str(file)]
    with pytest.warns(UserWarning, match="1 of 8 samples could not be read and were left out"):
        data.teardown("fit")


def test_labels_that_training_never_saw(tmp_path: Path) -> None:
    nmnist(tmp_path, classes=2)
    write_nmnist(tmp_path / "NMNIST/Test/7/00000.bin", [1] * 9, [2] * 9, [1] * 9, range(9))
    data = set_up("NMNIST", tmp_path)
    with pytest.raises(DataError, match=r"7/00000\.bin has the label -1, expected a whole number from 0 to 1"):
        list(data.test_dataloader())


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for dataset, layout in (
        ("NMNIST", "NMNIST/Train/DIGIT/*.bin"),
        ("CIFAR10DVS", "CIFAR10DVS/CLASS/*.aedat4"),
        ("DVSGesture", "DVSGesture/ibmGestureTrain/USER_LIGHTING/LABEL.npy"),
        ("NCALTECH101", "NCALTECH101/*"),
    ):
        size = [304, 240, 2] if dataset == "NCALTECH101" else None
        with pytest.raises(FileNotFoundError) as caught:
            set_up(dataset, tmp_path, sensor_size=size)
        assert str(tmp_path / dataset) in str(caught.value)
        assert layout in str(caught.value)
        assert "download=true" in str(caught.value)
    nmnist(tmp_path)
    for file in (tmp_path / "NMNIST/Test").rglob("*.bin"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="no test recordings of NMNIST"):
        set_up("NMNIST", tmp_path)


class _Blinks(tonic.dataset.Dataset):
    """A dataset of one's own: no files, no split."""

    sensor_size = (6, 4, 2)

    def __init__(self, save_to: str) -> None:
        super().__init__(save_to)
        dtype = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])
        self.data = [np.array([(i % 6, 3, t, 1) for t in range(8)], dtype) for i in range(20)]
        self.targets = ["left" if i < 10 else "right" for i in range(20)]

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        return self.data[index], self.targets[index]

    def __len__(self) -> int:
        return len(self.data)

    def _check_exists(self) -> bool:
        return True


def test_any_dataset_by_class_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_events.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    import my_events  # type: ignore[import-not-found]

    my_events.Blinks = _Blinks
    data = set_up("my_events.Blinks", tmp_path, slice_by="events", cache=None)
    assert data.class_names == ["left", "right"]
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [16, 2, 2]
    frames, label = data.test_set[1]  # the last recording, at (19 % 6, 3)
    assert label == 1
    assert torch.equal(frames[:, 1, 3, 1], torch.tensor([2.0, 2.0, 2.0, 2.0]))
    assert frames.sum() == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "NMIST"}, "'NMIST' is not one of tonic's datasets; expected a class path, or one of .*NMNIST"),
        ({"dataset": "nowhere.Events"}, "there is no dataset class 'nowhere.Events'"),
        ({"dataset": "pathlib.Path"}, "'pathlib.Path' is not one of tonic's datasets"),
        ({"dataset": "NCALTECH101"}, r"set sensor_size to \[width, height, polarities\]"),
        ({"sensor_size": [34, 0, 2]}, "each at least 1"),
        ({"timesteps": 0}, "timesteps must be at least 1, got 0"),
        ({"slice_by": "count"}, "slice_by must be 'time' or 'events', got 'count'"),
        ({"size": 35}, "size must lie between 1 and 34"),
        ({"val_share": 1.0}, r"val_share must lie in \[0, 1\), got 1.0"),
        ({"hflip": 2.0}, "hflip is a probability, got 2.0"),
        ({"roll": -1}, "roll must not be negative, got -1"),
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip', got 'ignore'"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EventDataModule(**options)


def test_augmentation_changes_all_frames_of_a_recording_alike() -> None:
    frames = np.zeros((3, 2, 12, 12), np.int16)
    frames[:, 0, 2, 3] = (1, 2, 3)
    frames[:, 1, 7, 8] = 5
    x = torch.from_numpy(frames).float()
    assert torch.equal(FrameAugmentation()(frames), x)
    assert torch.equal(FrameAugmentation(hflip=1.0)(frames), x.flip(-1))
    seen = set()
    for _ in range(300):
        rolled = FrameAugmentation(roll=2)(frames)
        shift = tuple(int(a - b) for a, b in zip(rolled[0, 0].nonzero()[0], (2, 3), strict=True))
        seen.add(shift)
        assert torch.equal(rolled, x.roll(shift, (-2, -1)))
    assert seen == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}
    nda = FrameAugmentation(nda=True)
    outcomes = [nda(frames) for _ in range(60)]
    assert all(o.shape == x.shape and o.dtype == x.dtype for o in outcomes)
    assert len({o.numpy().tobytes() for o in outcomes}) > 10
    for outcome in outcomes:  # the frames stay copies of each other: 1, 2, 3 times the same
        torch.testing.assert_close(outcome[1, 0], 2 * outcome[0, 0])
        torch.testing.assert_close(outcome[2, 0], 3 * outcome[0, 0])
    assert np.array_equal(frames[:, 0, 2, 3], (1, 2, 3))  # the cache's own frames are untouched
