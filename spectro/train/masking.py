"""SpecAugment on pictures: bands of time and frequency are masked, time and frequency are warped.

The masks are those of Park et al. (2019), with widths as shares of the picture. Warping is linear: the picture is
stretched and shifted along time (another tempo, another cut) and along frequency (another vocal tract, after Jaitly &
Hinton, 2013). albumentations does both; only this module uses it, so that it can be replaced.

Every picture is altered with a seed of its own, which the sampler draws from the run's seed, the epoch and the place:
no two workers and no two epochs repeat each other, and the result does not depend on the number of workers.

Sources: Park et al., SpecAugment, Interspeech 2019; Jaitly & Hinton, Vocal tract length perturbation, ICML 2013.
"""

from dataclasses import dataclass

import albumentations

from spectro.errors import TrainingError
from spectro.picture.spec import Image


@dataclass(frozen=True, kw_only=True)
class MaskingSettings:
    """SpecAugment: how training pictures are altered.

    Args:
        time_masks: largest number of time masks.
        time_share: largest width of a time mask, as a share of the picture.
        frequency_masks: largest number of frequency masks.
        frequency_share: largest height of a frequency mask, as a share of the picture.
        fill: gray value of masks, 0 to 255; 128 is a clip's mean if pictures are scaled by `clip_norm`.
        time_warp: largest stretch or squeeze along time, as a share.
        frequency_warp: largest stretch or squeeze along frequency, as a share.
        time_shift: largest shift along time, as a share of the picture.
        frequency_shift: largest shift along frequency, as a share of the picture.
    """

    time_masks: int = 2
    time_share: float = 0.12
    frequency_masks: int = 2
    frequency_share: float = 0.12
    fill: int = 128
    time_warp: float = 0.2
    frequency_warp: float = 0.08
    time_shift: float = 0.1
    frequency_shift: float = 0.04

    def __post_init__(self) -> None:
        for name in ("time_share", "frequency_share", "time_warp", "frequency_warp", "time_shift", "frequency_shift"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"masking.{name} is {getattr(self, name)}; it is a share, from 0 to below 1")
        if self.time_masks < 0 or self.frequency_masks < 0 or not 0 <= self.fill <= 255:
            raise TrainingError("masking needs counts of 0 or more and a fill of 0 to 255")


class Masker:
    """Alters pictures of one size.

    Args:
        settings: the masks and warps.
        height: height of the pictures, in pixels.
        width: width of the pictures, in pixels.
    """

    def __init__(self, settings: MaskingSettings, height: int, width: int) -> None:
        warp = albumentations.Affine(
            scale={"x": _around(1, settings.time_warp), "y": _around(1, settings.frequency_warp)},
            translate_percent={"x": _around(0, settings.time_shift), "y": _around(0, settings.frequency_shift)},
            p=1.0,
        )
        mask = albumentations.XYMasking(
            num_masks_x=(0, settings.time_masks),
            num_masks_y=(0, settings.frequency_masks),
            mask_x_length=(0, round(settings.time_share * width)),
            mask_y_length=(0, round(settings.frequency_share * height)),
            fill=settings.fill,
            p=1.0,
        )
        self._compose = albumentations.Compose([warp, mask])

    def __call__(self, pixels: Image, seed: int) -> Image:
        """Return an altered copy.

        Args:
            pixels: uint8 array of shape (height, width) or (height, width, 3).
            seed: 0 to 2**32 - 1; the same seed gives the same copy.
        """
        self._compose.set_random_seed(seed)
        altered: Image = self._compose(image=pixels)["image"]
        return altered


def _around(centre: float, distance: float) -> tuple[float, float]:
    return (centre - distance, centre + distance)
