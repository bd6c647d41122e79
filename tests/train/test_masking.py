import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from spectro.errors import TrainingError
from spectro.train.data import PictureDataModule
from spectro.train.masking import Masker, MaskingSettings
from tests.conftest import World

PICTURE = np.full((100, 200), 200, np.uint8)
STILL = {"time_warp": 0.0, "frequency_warp": 0.0, "time_shift": 0.0, "frequency_shift": 0.0}


def test_masks_stay_within_the_requested_number_and_width() -> None:
    settings = MaskingSettings(time_masks=2, time_share=0.1, frequency_masks=1, frequency_share=0.2, fill=7, **STILL)
    masker = Masker(settings, 100, 200)
    widths, heights = set(), set()
    for seed in range(300):
        masked = masker(PICTURE, seed)
        assert set(np.unique(masked)) <= {7, 200}
        columns, rows = (masked == 7).all(axis=0), (masked == 7).all(axis=1)
        widths.add(int(columns.sum()))
        heights.add(int(rows.sum()))
        assert ((masked == 7) == (columns[None, :] | rows[:, None])).all()
    assert max(widths) <= 2 * 20
    assert max(widths) > 20
    assert max(heights) <= 20
    assert {0} < widths
    assert {0} < heights


def test_equal_seeds_give_equal_pictures_and_different_seeds_differ() -> None:
    masker = Masker(MaskingSettings(), 100, 200)
    picture = np.random.default_rng(0).integers(0, 256, (100, 200), dtype=np.uint8)
    first = masker(picture, 5)
    assert not np.array_equal(masker(picture, 6), first)
    np.testing.assert_array_equal(masker(picture, 5), first)


def test_time_warp_stretches_pictures_up_to_its_limit() -> None:
    settings = MaskingSettings(time_masks=0, frequency_masks=0, time_warp=0.3, time_shift=0.0, frequency_warp=0.0)
    masker = Masker(settings, 100, 200)
    striped = np.zeros((100, 200), np.uint8)
    striped[:, 60:140] = 255
    lengths = [int((masker(striped, seed)[50] > 127).sum()) for seed in range(100)]
    assert 80 * 0.68 < min(lengths) < 80 * 0.78
    assert 80 * 1.22 < max(lengths) < 80 * 1.32


def test_three_channels_get_the_same_masks() -> None:
    masked = Masker(MaskingSettings(), 100, 200)(np.repeat(PICTURE[..., None], 3, 2), 3)
    assert masked.shape == (100, 200, 3)
    np.testing.assert_array_equal(masked[..., 0], masked[..., 2])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
@pytest.mark.parametrize("workers", [0, 2])
def test_masks_depend_on_the_epoch_but_not_on_the_number_of_workers(world: World, workers: int) -> None:
    """Without our seeds, albumentations draws the same masks in every worker and every epoch."""

    def epoch(number: int, count: int) -> torch.Tensor:
        data = PictureDataModule(world.images, batch_size=8, masking=MaskingSettings(), seed=1, workers=count)
        loader: DataLoader = data.train_dataloader()
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        return torch.cat([pictures for pictures, *_rest in loader])

    first, second = epoch(0, workers), epoch(1, workers)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, epoch(0, 0))
    assert len({picture.numpy().tobytes() for picture in first}) == len(first)


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"masking\.time_share is 1\.2"):
        MaskingSettings(time_share=1.2)
    with pytest.raises(TrainingError, match="counts of 0 or more"):
        MaskingSettings(time_masks=-1)
