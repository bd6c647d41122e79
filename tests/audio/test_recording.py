import io
import os
import stat
import struct
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile

from spectro.audio import mpeg, recording
from spectro.errors import AudioError, AudioLengthError
from tests.conftest import RATE, WriteWav, voice


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_U8", 0.01),
        ("a.wav", "PCM_16", 1e-4),
        ("a.wav", "PCM_24", 1e-6),
        ("a.wav", "PCM_32", 1e-6),
        ("a.wav", "FLOAT", 0),
        ("a.wav", "DOUBLE", 1e-7),
        ("a.flac", "PCM_16", 1e-4),
        ("a.ogg", "VORBIS", 0.1),
        ("a.mp3", "MPEG_LAYER_III", 0.1),
        ("a.aiff", "PCM_16", 1e-4),
    ],
)
def test_every_format_is_decoded_to_the_written_samples(
    wav: WriteWav, name: str, subtype: str, tolerance: float
) -> None:
    samples = voice()
    read = recording.read(wav(name, samples, subtype=subtype), sample_rate=RATE)
    assert read.dtype == np.float32
    assert len(read) == len(samples)
    np.testing.assert_allclose(read, samples, atol=max(tolerance, 2e-5))  # for the removed baseline


def test_channels_are_averaged(wav: WriteWav) -> None:
    left, right = voice(pitch=120), voice(pitch=200)
    path = wav(samples=np.stack([left, right], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(recording.read(path, sample_rate=RATE), (left + right) / 2, atol=1e-3)


@pytest.mark.parametrize("name", ["clip.wav", "clip.flac", "clip.aiff"])
def test_16_bit_samples_equal_those_of_libsndfile(wav: WriteWav, name: str) -> None:
    loud = np.clip(12 * np.stack([voice(), -voice(pitch=210)], axis=1), -1, 1)
    path = wav(name, loud, subtype="PCM_16")
    with soundfile.SoundFile(path) as file:
        found = recording.read_block(file, 10**6)
    np.testing.assert_array_equal(found, soundfile.read(path, dtype="float32")[0])
    assert found.dtype == np.float32 and found.min() == -1


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
def test_any_sample_rate_is_resampled_to_the_requested_rate(wav: WriteWav, rate: int) -> None:
    """A sine keeps its frequency, amplitude and duration."""
    time = np.arange(rate) / rate
    path = wav(samples=0.5 * np.sin(2 * np.pi * 1000 * time).astype(np.float32), rate=rate, subtype="FLOAT")
    samples = recording.read(path, sample_rate=RATE)
    assert abs(len(samples) - RATE) <= 1
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    middle = slice(2000, 14000)
    np.testing.assert_allclose(samples[middle], expected[middle], atol=2e-3)


def test_trimming_equals_that_of_librosa(wav: WriteWav) -> None:
    quiet = 1e-4 * np.random.default_rng(0).standard_normal(6000).astype(np.float32)
    samples = np.concatenate([quiet, voice(0.7), quiet[:3000]])
    path = wav(samples=samples, subtype="FLOAT")
    whole = recording.read(path, sample_rate=RATE)
    for top_db in (20, 30, 45):
        expected, _ = librosa.effects.trim(whole, top_db=top_db, frame_length=512, hop_length=128)
        np.testing.assert_array_equal(recording.read(path, sample_rate=RATE, trim_db=top_db), expected)


def test_a_binary_file_is_read_like_its_path(wav: WriteWav) -> None:
    path = wav()
    expected = recording.read(path, sample_rate=RATE)
    np.testing.assert_array_equal(recording.read(io.BytesIO(path.read_bytes()), sample_rate=RATE), expected)


def _header(channels: int = 1, rate: int = RATE, promised: int = 32_000) -> bytes:
    layout = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * 2 * channels, 2 * max(channels, 1), 16)
    return b"RIFF" + struct.pack("<I", 36 + promised) + b"WAVEfmt " + layout + b"data" + struct.pack("<I", promised)


def _samples(count: int) -> bytes:
    return (voice(count / RATE) * 20000).astype("<i2").tobytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"this is a text that was named like a recording", "not a recording"),
        (_header()[:30], "not a recording"),
        (_header(), "cut off|no samples"),
        (_header() + _samples(4_000), "cut off: its header promises 32000 bytes of sound, but the file holds 8000"),
        (_header(channels=0) + _samples(16_000), "not a recording.*[Cc]hannel"),
        (_header(rate=1) + _samples(16_000), "its header says 1 Hz"),
        (_header() + bytes(32_000), "is silent"),
        (_header(promised=400) + _samples(200), "is too short: 0.013 s"),
    ],
    ids=["empty", "text", "header", "no data", "cut off", "no channel", "1 Hz", "silent", "short"],
)
def test_the_error_for_a_bad_file_names_it_and_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=rf"bad\.wav: .*({reason})"):
        recording.read(path, sample_rate=RATE, min_duration_s=0.025)


def test_an_m4a_file_is_listed_and_its_error_gives_the_ffmpeg_command(tmp_path: Path) -> None:
    path = tmp_path / "call.m4a"
    path.write_bytes(b"\0\0\0\x1cftypM4A \0\0\0\0M4A mp42isom" + bytes(64))
    assert list(recording.recordings(tmp_path)) == [path]
    with pytest.raises(AudioError, match=r"call\.m4a: .*ffmpeg -i call\.m4a call\.wav"):
        recording.read(path, sample_rate=RATE)


@pytest.mark.parametrize(
    "promised",
    [0, 0x7F000000, 0x7FFFF000, 0x7FFFFF00, 0x7FFFFFFF - 44, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF - 36, 0xFFFFFFFF],
)
def test_a_wav_with_a_placeholder_size_is_read_to_its_end(tmp_path: Path, promised: int) -> None:
    path = tmp_path / "piped.wav"
    for total in (0, 0xFFFFFFFF, min(promised + 36, 0xFFFFFFFF)):
        header = bytearray(_header(promised=0))
        header[4:8], header[-4:] = struct.pack("<I", total), struct.pack("<I", promised)
        path.write_bytes(bytes(header) + _samples(8_000))
        expected = np.frombuffer(_samples(8_000), "<i2") / 2**15
        np.testing.assert_allclose(recording.read(path, sample_rate=RATE), expected, atol=1e-3)
        assert recording.duration_s(path) == 0.5
        uploaded = io.BytesIO(path.read_bytes())
        assert len(recording.read(uploaded, sample_rate=RATE)) == 8_000
        with pytest.raises(AudioLengthError):
            recording.read(path, sample_rate=RATE, max_duration_s=0.4)


def test_a_wav_without_samples_raises_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "nothing.wav"
    path.write_bytes(_header(promised=0))
    with pytest.raises(AudioError, match=r"nothing\.wav: holds no samples"):
        recording.read(path, sample_rate=RATE)


def test_a_flac_of_unknown_length_is_read_to_its_end(wav: WriteWav) -> None:
    path = wav("piped.flac", voice(3.0))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # STREAMINFO's number of samples, and its MD5: unknown
    content[22:42] = bytes(20)
    whole = recording.read(path, sample_rate=RATE)
    path.write_bytes(content)
    np.testing.assert_array_equal(recording.read(path, sample_rate=RATE), whole)
    assert recording.duration_s(path) == 3.0
    with pytest.raises(AudioLengthError, match=r"lasts longer than the limit of 2 s"):
        recording.read(path, sample_rate=RATE, max_duration_s=2.0)


@pytest.mark.parametrize("parts", [(0.3, 0.0), (0.0, 0.3)], ids=["loud first", "quiet first"])
@pytest.mark.parametrize("kind", [(16_000, 1), (44_100, 2)], ids=["MPEG-2", "MPEG-1"])
def test_a_variable_bit_rate_mp3_without_a_xing_header_is_read_whole(
    wav: WriteWav, parts: tuple[float, float], kind: tuple[int, int]
) -> None:
    (rate, channels), generator = kind, np.random.default_rng(0)
    samples = np.concatenate([level * generator.normal(size=(8 * rate, channels)) for level in parts])
    path = wav("a.mp3", samples.clip(-1, 1), rate=rate, bitrate_mode="VARIABLE", compression_level=0.3)
    content = path.read_bytes()
    place = content.index(b"Xing")
    told = recording.read(path, sample_rate=RATE)
    path.write_bytes(content[:place] + b"none" + content[place + 4 :])
    with soundfile.SoundFile(path) as file:
        assert abs(file.frames / rate - 16) > 2  # libsndfile's guess
    found = recording.read(path, sample_rate=RATE)
    assert len(found) / RATE == pytest.approx(16, abs=0.2)
    assert recording.duration_s(path) == pytest.approx(16, abs=0.2)
    loud = slice(RATE, 7 * RATE) if parts[0] else slice(9 * RATE, 15 * RATE)
    assert found[loud].std() == pytest.approx(told[loud].std(), rel=0.02)
    assert len(recording.read(io.BytesIO(path.read_bytes()), sample_rate=RATE)) == len(found)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("page.mp3", b"<!DOCTYPE html><html>404</html>" * 50, "text such as a web page"),
        ("error.wav", b'{"error": "expired"}', "text such as a web page"),
        ("calls.wav", b"PK\x03\x04" + bytes(100), "an archive; unpack it first"),
        ("scan.flac", b"%PDF-1.7" + bytes(100), "a document or a picture"),
        ("call.wav", b"\0\0\0\x1cftypM4A \0\0\0\0M4A mp42isom" + bytes(64), "M4A, MP4 or 3GP; convert it first"),
        ("call.ogg", b"\x1aE\xdf\xa3" + bytes(64), "WebM or Matroska; convert it first: ffmpeg -i call.ogg call.wav"),
        ("call.mp3", b"\xff\xf1P\x80" + bytes(64), "AAC; convert it first"),
    ],
)
def test_the_error_for_another_type_of_file_names_the_type(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for source in (path, io.BytesIO(content)):
        with pytest.raises(AudioError, match="is not a recording that can be read") as caught:
            recording.read(source, sample_rate=RATE)
        assert reason.replace("call.ogg call.wav", "") in str(caught.value)
        assert "does not exist" not in str(caught.value)


def test_a_source_that_is_neither_a_path_nor_a_binary_file_is_refused(wav: WriteWav) -> None:
    content = wav().read_bytes()
    for wrong in (content, bytearray(content), 7, None):
        with pytest.raises(AudioError, match=r"neither a path nor a binary file; wrap the bytes .* in io\.BytesIO"):
            recording.read(wrong, sample_rate=RATE)  # type: ignore[arg-type]


def test_a_binary_file_can_be_read_twice(wav: WriteWav) -> None:
    source = io.BytesIO(wav().read_bytes())
    first = recording.read(source, sample_rate=RATE)
    np.testing.assert_array_equal(recording.read(source, sample_rate=RATE), first)


@pytest.mark.parametrize("offset", [0.003, -0.02, 0.1])
def test_a_constant_offset_does_not_change_the_result(wav: WriteWav, offset: float) -> None:
    clip = np.concatenate([np.zeros(RATE // 2), voice(1.0), np.zeros(RATE // 2)])
    plain = recording.read(wav(samples=clip, subtype="FLOAT"), sample_rate=RATE, trim_db=30)
    shifted = recording.read(wav("dc.wav", clip + offset, subtype="FLOAT"), sample_rate=RATE, trim_db=30)
    assert shifted.shape == plain.shape
    np.testing.assert_allclose(shifted, plain, atol=1e-6)
    for nothing in (np.zeros(4 * RATE), np.random.default_rng(0).normal(0, 1e-4, RATE)):
        with pytest.raises(AudioError, match="is silent"):
            recording.read(wav("silent.wav", nothing + offset, subtype="FLOAT"), sample_rate=RATE)


@pytest.mark.parametrize("gain", [-1.0, -0.9])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_a_single_channel_is_kept_where_channels_cancel_out(wav: WriteWav, gain: float, noise: float) -> None:
    generator, clip = np.random.default_rng(0), voice(2.0)
    channels = np.stack([clip, gain * clip], axis=1) + generator.normal(0, noise, (len(clip), 2)) + [0.01, -0.03]
    found = recording.read(wav(samples=channels, subtype="FLOAT"), sample_rate=RATE)
    np.testing.assert_allclose(found[RATE // 4 :], clip[RATE // 4 :], atol=5 * noise + 1e-3)


def test_speakers_on_separate_channels_are_both_kept(wav: WriteWav) -> None:
    nothing = np.zeros(RATE, np.float32)
    left, right = np.concatenate([voice(), nothing]), np.concatenate([nothing, voice(pitch=220)])
    found = recording.read(wav(samples=np.stack([left, right], axis=1)), sample_rate=RATE)
    np.testing.assert_allclose(found, (left + right) / 2, atol=2e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_samples_are_refused(wav: WriteWav, value: float) -> None:
    samples = voice()
    samples[100] = value
    with pytest.raises(AudioError, match="NaN or infinite"):
        recording.read(wav(samples=samples, subtype="FLOAT"), sample_rate=RATE)


def test_a_recording_over_the_limit_is_refused_without_decoding(wav: WriteWav, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wav(samples=voice(3.0))
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_a, **_k: pytest.fail("it was decoded"))
    with pytest.raises(AudioError, match=r"lasts 3\.0 s, more than the limit of 2 s"):
        recording.read(path, sample_rate=RATE, max_duration_s=2.0)


@pytest.mark.parametrize("damaged", ["flac", "ogg"])
def test_a_truncated_flac_or_ogg_file_is_refused(wav: WriteWav, damaged: str) -> None:
    path = wav(f"half.{damaged}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"half\."):
        recording.read(path, sample_rate=RATE)


@pytest.mark.parametrize("damaged", ["aiff", "au", "w64", "rf64", "voc", "caf", "mp3"])
def test_a_truncated_file_of_another_format_is_refused(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / f"half.{damaged}"
    soundfile.write(path, voice(4.0), RATE)
    assert len(recording.read(path, sample_rate=RATE)) == 4 * RATE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"half\."):
        recording.read(path, sample_rate=RATE)


def test_the_error_for_a_folder_link_pipe_or_missing_file_gives_the_reason(tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "headless.raw").write_bytes(_samples(100))
    (tmp_path / "link.wav").symlink_to(tmp_path / "gone.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    for name, reason in {
        "folder.wav": "is a folder",
        "link.wav": "broken link",
        "pipe.wav": "not a regular file",
        "missing.wav": "No such file",
        "headless.raw": "not a recording",
    }.items():
        with pytest.raises(AudioError, match=rf"{name}: .*{reason}"):
            recording.read(tmp_path / name, sample_rate=RATE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_refused(wav: WriteWav) -> None:
    path = wav()
    path.chmod(stat.S_IWUSR)
    with pytest.raises(AudioError, match="Permission denied"):
        recording.read(path, sample_rate=RATE)


@pytest.mark.parametrize("suffix", [".wav", ".m4a"])
def test_errors_can_print_file_names_that_are_not_utf8(tmp_path: Path, suffix: str) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/line\nbreak \xff" + suffix.encode()))
    path.write_bytes(b"no sound")
    with pytest.raises(AudioError) as caught:
        recording.read(path, sample_rate=RATE)
    assert f"\\xff{suffix}" in str(caught.value)
    str(caught.value).encode("utf-8")


def test_samples_too_large_to_square_are_refused(wav: WriteWav) -> None:
    with pytest.raises(AudioError, match=r"holds samples of .e\+24 times full scale"):
        recording.read(wav(samples=voice() * np.float32(1e25), subtype="FLOAT"), sample_rate=RATE)


def test_a_pipe_has_a_duration_of_zero(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    assert recording.duration_s(tmp_path / "pipe.wav") == 0


def test_the_search_for_mpeg_frames_is_bounded(tmp_path: Path, wav: WriteWav) -> None:
    """Bytes that look like the start of a frame but are not: each one would be examined."""
    content = wav("a.mp3", voice(2.0)).read_bytes()
    place = next(content.index(mark) for mark in (b"Xing", b"Info") if mark in content)
    bare = content[:place] + b"none" + content[place + 4 :]
    looked: list[int] = []

    class Watched(bytes):
        def find(self, *given: object) -> int:  # type: ignore[override]
            looked.append(1)
            return bytes.find(self, *given)  # type: ignore[arg-type]

    assert mpeg.xing_frame(Watched(bare + b"\xff" * 2**20)) is not None
    assert len(looked) <= 2**16 + 10


def test_the_downmix_keeps_the_same_channel_from_block_to_block() -> None:
    generator, mix, clip = np.random.default_rng(0), recording.Downmix(), voice(4.0)
    signs = set()
    for piece in clip.reshape(-1, 1000):  # which channel is louder varies
        gains = generator.uniform(0.9, 1.1, 2) * [1, -1]
        signs.add(np.sign(np.dot(mix.add((piece[:, None] * gains).astype(np.float32)), piece)))
    assert len(signs) == 1
