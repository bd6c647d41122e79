"""Whisper's encoder: equal to transformers' encoder, read from its file, and from CTranslate2's by a script."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spectro.errors import DownloadError, TrainingError, WeightsError
from spectro.model import convert
from spectro.model.backbones import SpectrogramNet, layers, load_weights, trainable, weights_identity
from spectro.model.pretrained import SPECS
from spectro.model.whisper import WhisperEncoder
from tests import scripts


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@torch.inference_mode()
def test_the_encoder_matches_transformers(tmp_path: Path, cache: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.WhisperConfig(
        d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536, num_mel_bins=80,
        decoder_layers=1, decoder_attention_heads=6, decoder_ffn_dim=64, vocab_size=100, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.WhisperModel(config).eval()
    for value in theirs.parameters():
        value.add_(0.02 * torch.randn_like(value))
    state = {f"model.{name}": value.clone() for name, value in theirs.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    convert.keep("whisper_tiny_en", tmp_path / "model.safetensors")
    net = SpectrogramNet("whisper_tiny", 3).eval()
    told = load_weights(net, "whisper_tiny_en", SPECS["whisper"])
    assert "Whisper" in told and isinstance(net.backbone, WhisperEncoder)
    assert weights_identity("whisper_tiny_en").startswith("whisper_tiny_en.safetensors sha256:")
    shown = torch.randn(1, 80, 3000)
    expected = theirs.encoder(shown).last_hidden_state
    torch.testing.assert_close(net.backbone.states(shown[:, None])[-1], expected, atol=1e-4, rtol=1e-4)


def test_whisper_embeds_pictures_lists_layers_and_checks_picture_size() -> None:
    torch.manual_seed(0)
    net = SpectrogramNet("whisper_tiny", 3).eval()
    pictures = torch.randint(0, 256, (2, 1, 80, 300), dtype=torch.uint8)
    assert net.embed(pictures).shape == (2, 768)
    net.head(net.embed(pictures)).sum().backward()
    assert net.backbone.positions.grad is not None and not net.backbone.positions.grad[150:].any()
    names = [name for layer in layers(net) for name in layer]
    assert sorted(names) == sorted(name for name, _ in net.named_parameters())
    last = trainable(net, "last-block")
    assert "backbone.blocks.3.key.weight" in last and "backbone.blocks.2.key.weight" not in last
    assert "backbone.mixture.shares" in last
    for change in ({"height": 64}, {"width": 3002}):
        with pytest.raises(TrainingError, match=r"80 bands and 3000 columns at most.*--spec whisper"):
            net.check_pictures(replace(SPECS["whisper"], **change))
    net.check_pictures(SPECS["whisper"])


def test_a_failed_hub_download_names_the_command_and_foreign_files_are_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def offline(repository: str, name: str) -> str:
        asked.append((repository, name))
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(DownloadError, match=r"spectro weights whisper_tiny_en --from model\.safetensors"):
        convert.keep("whisper_tiny_en")
    assert asked == [("openai/whisper-tiny.en", "model.safetensors")]
    (tmp_path / "other.safetensors").write_bytes(b"no such thing")
    with pytest.raises(WeightsError, match=r"other\.safetensors: does not hold the weights whisper_tiny_en"):
        convert.keep("whisper_tiny_en", tmp_path / "other.safetensors")


def _text(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def test_a_ctranslate2_file_is_converted_to_whisper_encoder_tensors(tmp_path: Path) -> None:
    joined = np.arange(12 * 4, dtype=np.float16).reshape(12, 4)
    given = {
        "decoder/conv1/bias": np.zeros(2, np.float16),
        "encoder/conv1/bias": np.ones(4, np.float16),
        "encoder/layer_0/self_attention/linear_0/weight": joined,
        "encoder/layer_0/self_attention/linear_0/bias": joined[:, 0],
        "encoder/layer_0/ffn/layer_norm/gamma": np.ones(4, np.float32),
        "encoder/layer_norm/beta": np.zeros(4, np.float32),
        "encoder/position_encodings/encodings": joined,
    }
    content = struct.pack("<I", 6) + _text("WhisperSpec") + struct.pack("<II", 3, len(given))
    for name, value in given.items():
        content += _text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        content += struct.pack("<BI", 4 if value.dtype == np.float16 else 0, value.nbytes) + value.tobytes()
    (tmp_path / "model.bin").write_bytes(content)
    script = scripts.load("whisper_from_ctranslate2")
    found = script.encoder(script.variables(tmp_path / "model.bin"))
    attention = "encoder.layers.0.self_attn"
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "encoder.conv1.bias": (4,),
        f"{attention}.q_proj.weight": (4, 4),
        f"{attention}.k_proj.weight": (4, 4),
        f"{attention}.v_proj.weight": (4, 4),
        f"{attention}.q_proj.bias": (4,),
        f"{attention}.v_proj.bias": (4,),
        "encoder.layers.0.final_layer_norm.weight": (4,),
        "encoder.layer_norm.bias": (4,),
        "encoder.embed_positions.weight": (12, 4),
    }
    assert found[f"{attention}.v_proj.weight"].tolist() == joined[8:].tolist()
    (tmp_path / "other.bin").write_bytes(struct.pack("<I", 5) + _text("WhisperSpec"))
    with pytest.raises(SystemExit, match="of version 5, not WhisperSpec of version 6"):
        script.variables(tmp_path / "other.bin")
