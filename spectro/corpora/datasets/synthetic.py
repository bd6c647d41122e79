"""The embedded corpus: speech-like clips synthesised in code, so that everything runs without downloads.

Ten speakers (five men, five women) babble four sentences twice in each of six emotions. A voice is a glottal pulse
train (Rosenberg, 1971) and noise, filtered by four formants (Klatt, 1980). An emotion is a prosody: pitch, pitch range
and slope, tempo, loudness, brightness, breath and tremor, after the findings reviewed by Scherer (2003). Variation
between clips makes neighbouring emotions overlap. The corpus is for demonstrations and tests; figures on it say
nothing about people.

Sources: Rosenberg, JASA 49 (1971) 583; Klatt, JASA 67 (1980) 971; Scherer, Speech Communication 40 (2003) 227.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
from tqdm import tqdm

from spectro.audio.recording import Waveform
from spectro.corpora.table import Corpus, Fields
from spectro.errors import CorpusError
from spectro.files import replacing

SAMPLE_RATE = 16_000
SPEAKERS, SENTENCES, REPETITIONS = 10, 4, 2
SYLLABLES = 6
NAME = re.compile(r"speaker(\d\d)_(\w+)_sentence(\d)_take(\d)")
FORMANTS = np.array(
    [  # Hz, for a, e, i, o, u in a male voice
        [730, 1090, 2440, 3400],
        [530, 1840, 2480, 3500],
        [270, 2290, 3010, 3600],
        [570, 840, 2410, 3300],
        [300, 870, 2240, 3300],
    ]
)
BANDWIDTHS = np.array([80, 100, 140, 200])  # Hz


class Prosody(NamedTuple):
    """Prosody of an emotion, as factors on and additions to a speaker's own."""

    pitch: float  # factor
    pitch_range: float  # semitones, from syllable to syllable
    slope: float  # semitones over the utterance
    tempo: float  # factor
    gain_db: float
    brightness: float  # dB per octave, added to the voice's tilt
    breath: float  # noise relative to voice
    tremor: float  # fraction of pitch, at 6 Hz


PROSODY = {
    "neutral": Prosody(1.00, 1.2, -1.5, 1.00, 0.0, 0.0, 0.03, 0.003),
    "calm": Prosody(0.93, 0.8, -1.0, 0.85, -4.0, -2.0, 0.08, 0.002),
    "happy": Prosody(1.30, 3.8, 2.0, 1.12, 3.0, 2.0, 0.03, 0.004),
    "sad": Prosody(0.90, 0.9, -3.0, 0.74, -7.0, -4.0, 0.12, 0.012),
    "angry": Prosody(1.22, 2.6, -2.5, 1.20, 7.0, 5.0, 0.02, 0.008),
    "fearful": Prosody(1.48, 1.6, 1.0, 1.30, -1.0, 0.5, 0.10, 0.030),
}
SPREAD = np.array([0.06, 0.5, 0.8, 0.06, 1.5, 0.8, 0.015, 0.002])  # standard deviation of each between clips


@dataclass(frozen=True)
class Voice:
    """A speaker: pitch in Hz, vocal tract length relative to a man's, tilt in dB per octave, tempo as a factor."""

    gender: str
    pitch: float
    tract: float
    tilt: float
    tempo: float


def voice(speaker: int) -> Voice:
    """Return speaker 1 to 10; odd ones are men, as in RAVDESS."""
    generator = np.random.default_rng([2, speaker])
    male = bool(speaker % 2)
    return Voice(
        gender="male" if male else "female",
        pitch=float(generator.uniform(95, 135) if male else generator.uniform(180, 230)),
        tract=float(generator.uniform(0.95, 1.06) if male else generator.uniform(0.82, 0.90)),
        tilt=float(generator.uniform(-1.5, 1.5)),
        tempo=float(generator.uniform(0.93, 1.07)),
    )


def synthesise(speaker: int, emotion: str, sentence: int, take: int) -> Waveform:
    """Synthesise one clip: float32 array of shape (samples,) at 16 kHz, 1.3 to 3 s long."""
    emotions = list(PROSODY)
    generator = np.random.default_rng([1, speaker, emotions.index(emotion), sentence, take])
    who = voice(speaker)
    how = Prosody(*(np.array(PROSODY[emotion]) + SPREAD * generator.standard_normal(len(SPREAD))))
    spoken = np.random.default_rng([3, sentence])  # the same vowels and lengths for all speakers
    vowels, lengths = spoken.integers(0, 5, SYLLABLES), spoken.uniform(0.16, 0.26, SYLLABLES)
    steps = generator.normal(0, max(how.pitch_range, 0.2), SYLLABLES) + np.linspace(0, how.slope, SYLLABLES)
    pieces: list[npt.NDArray[np.float64]] = []
    for vowel, length, step in zip(vowels, lengths, steps, strict=True):
        duration = length / (who.tempo * max(how.tempo, 0.5))
        pitch = who.pitch * how.pitch * 2 ** (step / 12)
        pieces += [_consonant(generator, 0.25 * duration), _vowel(generator, who, how, int(vowel), duration, pitch)]
    silence = [np.zeros(round(seconds * SAMPLE_RATE)) for seconds in generator.uniform(0.1, 0.25, 2)]
    clip = np.concatenate([silence[0], *pieces, silence[1]])
    loudness = 10 ** ((-24 + how.gain_db) / 20) / np.sqrt(np.mean(clip**2))
    clip = clip * loudness + generator.normal(0, 10 ** (-62 / 20), len(clip))
    limited: Waveform = np.clip(clip, -1, 1).astype(np.float32)
    return limited


def _vowel(
    generator: np.random.Generator, who: Voice, how: Prosody, vowel: int, duration: float, pitch: float
) -> npt.NDArray[np.float64]:
    time = np.arange(round(duration * SAMPLE_RATE)) / SAMPLE_RATE
    wobble = 1 + max(how.tremor, 0) * np.sin(2 * np.pi * 6 * time + generator.uniform(0, 6.28))
    phase = np.cumsum(pitch * wobble * (1 - 0.08 * time / duration)) / SAMPLE_RATE % 1
    source = np.diff(_rosenberg(phase), prepend=0.0)
    source = source / source.std() + max(how.breath, 0) * generator.standard_normal(len(time))
    shaped = _tilt(source, who.tilt + how.brightness)
    for centre, width in zip(FORMANTS[vowel] / who.tract, BANDWIDTHS, strict=True):
        shaped = _resonate(shaped, centre, width)
    envelope = np.minimum(1, np.minimum(time, duration - time) / 0.03)
    spoken: npt.NDArray[np.float64] = shaped / shaped.std() * np.maximum(envelope, 0)
    return spoken


def _rosenberg(phase: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the glottal flow at a phase of the period: opening over 40 %, closing over 16 %."""
    opening = 0.5 * (1 - np.cos(np.pi * phase / 0.4))
    closing = np.cos(np.pi / 2 * (phase - 0.4) / 0.16)
    return np.where(phase < 0.4, opening, np.where(phase < 0.56, closing, 0.0))


def _tilt(source: npt.NDArray[np.float64], db_per_octave: float) -> npt.NDArray[np.float64]:
    """Tilt the spectrum around 1 kHz."""
    spectrum = np.fft.rfft(source)
    octaves = np.log2(np.maximum(np.fft.rfftfreq(len(source), 1 / SAMPLE_RATE), 60) / 1000)
    return np.fft.irfft(spectrum * 10 ** (db_per_octave * octaves / 20), len(source))


def _resonate(source: npt.NDArray[np.float64], centre: float, width: float) -> npt.NDArray[np.float64]:
    """Filter with one formant, a resonator of unit gain at 0 Hz."""
    radius = np.exp(-np.pi * width / SAMPLE_RATE)
    poles = [1, -2 * radius * np.cos(2 * np.pi * min(centre, 7500) / SAMPLE_RATE), radius**2]
    from scipy.signal import lfilter  # takes a second to import

    resonated: npt.NDArray[np.float64] = lfilter([sum(poles)], poles, source)
    return resonated


def _consonant(generator: np.random.Generator, duration: float) -> npt.NDArray[np.float64]:
    noise = generator.standard_normal(round(duration * SAMPLE_RATE))
    return 0.25 * np.diff(noise, prepend=0.0) * np.hanning(len(noise))


def write(root: Path) -> None:
    """Synthesise the corpus into `root`, 480 WAV files of 16 bits; existing files are kept."""
    names = [
        (speaker, emotion, sentence, take)
        for speaker in range(1, SPEAKERS + 1)
        for emotion in PROSODY
        for sentence in range(SENTENCES)
        for take in range(REPETITIONS)
    ]
    paths = [root / f"speaker{s:02}" / f"speaker{s:02}_{e}_sentence{n}_take{t}.wav" for s, e, n, t in names]
    missing = [(name, path) for name, path in zip(names, paths, strict=True) if not path.exists()]
    for name, path in tqdm(missing, desc="synthesising", unit="clip", disable=not missing):
        with replacing(path) as temporary:
            soundfile.write(temporary, synthesise(*name), SAMPLE_RATE, subtype="PCM_16", format="WAV")


def parse(path: PurePath) -> Fields:
    """Read a clip's fields from its name."""
    match = NAME.fullmatch(path.stem)
    if not match or match[2] not in PROSODY:
        raise CorpusError("is not named like speaker01_happy_sentence0_take0.wav")
    return {
        "emotion": match[2],
        "speaker": str(int(match[1])),
        "gender": voice(int(match[1])).gender,
        "statement": match[3],
        "repetition": match[4],
    }


SYNTHETIC = Corpus(
    name="synthetic",
    title="the embedded synthetic corpus",
    emotions=tuple(PROSODY),
    language=None,
    licence="Apache-2.0 (made by this project's code)",
    homepage="",
    open=lambda _root: parse,
)
