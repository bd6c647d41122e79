"""Every corpus is parsed from the names and layout of its distribution."""

import os
from pathlib import Path

import pandas as pd
import pytest

from spectro.corpora.registry import CORPORA, scan
from spectro.corpora.table import EMOTIONS
from spectro.errors import CorpusError


def _tree(root: Path, *names: str) -> Path:
    """Write files that contain their own name, so that no two are the same recording; returns `root`."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    return root


@pytest.mark.parametrize(
    ("corpus", "name", "emotion", "speaker", "gender", "extra"),
    [
        ("ravdess", "Actor_12/03-01-06-02-02-01-12.wav", "fearful", "12", "female",
         {"intensity": "strong", "statement": "dogs", "repetition": "1", "vocal_channel": "speech", "language": "en"}),
        ("ravdess", "Audio_Speech_Actors_01-24/Actor_07/03-01-08-01-01-02-07.flac", "surprised", "7", "male",
         {"intensity": "normal", "statement": "kids", "repetition": "2"}),
        ("ravdess-song", "Actor_03/03-02-02-01-01-02-03.wav", "calm", "3", "male", {"vocal_channel": "song"}),
        ("crema-d", "AudioWAV/1001_DFA_ANG_XX.wav", "angry", "1001", "male", {"statement": "DFA"}),
        ("crema-d", "AudioWAV/1091_IEO_SAD_HI.wav", "sad", "1091", "female", {"intensity": "high"}),
        ("crema-d", "AudioWAV/1040_ITH_SAD_X.wav", "sad", "1040", "male", {}),
        ("tess", "TESS Toronto emotional speech set data/OAF_Pleasant_surprise/OAF_back_ps.wav", "surprised", "OAF",
         "female", {"statement": "back"}),
        ("tess", "YAF_fear/YAF_dog_fear.wav", "fearful", "YAF", "female", {}),
        ("tess", "OAF_neutral/OA_bite_neutral.wav", "neutral", "OAF", "female", {}),
        ("savee", "AudioData/DC/sa03.wav", "sad", "DC", "male", {}),
        ("savee", "ALL/KL_su15.wav", "surprised", "KL", "male", {}),
        ("savee", "AudioData/JK/a01.wav", "angry", "JK", "male", {}),
        ("emodb", "wav/03a01Fa.wav", "happy", "03", "male", {"language": "de"}),
        ("emodb", "wav/16b10Lb.wav", "bored", "16", "female", {}),
        ("emodb", "wav/11a05Wa.wav", "angry", "11", "male", {}),
        ("emovo", "f1/sor-f1-n3.wav", "surprised", "f1", "female", {"language": "it", "statement": "n3"}),
        ("emovo", "EMOVO/m3/rab-m3-b1.wav", "angry", "m3", "male", {}),
        ("eyase", "Female02/fm01_ang (1).wav", "angry", "female02", "female", {"language": "ar"}),
        ("eyase", "Male03/ml03_neu (12).wav", "neutral", "male03", "male", {}),
        ("urdu", "Angry/SM1_F01_A12.wav", "angry", "M1", "male", {"language": "ur"}),
        ("urdu", "Happy/SF6_F3_H027.wav", "happy", "F6", "female", {}),
        ("synthetic", "speaker02/speaker02_fearful_sentence3_take1.wav", "fearful", "2", "female", {}),
    ],
)  # fmt: skip
def test_fields_are_parsed_from_a_file_name(
    tmp_path: Path, corpus: str, name: str, emotion: str, speaker: str, gender: str, extra: dict[str, str]
) -> None:
    found = scan(corpus, _tree(tmp_path, name))
    row = found.clips.iloc[0]
    assert (row["corpus"], row["emotion"], row["speaker"], row["gender"]) == (corpus, emotion, speaker, gender)
    assert {key: row[key] for key in extra} == extra
    assert emotion in CORPORA[corpus].emotions
    assert len(found.rejected) == 0


def test_anad_has_emotions_from_its_table_and_each_call_as_a_speaker(tmp_path: Path) -> None:
    root = _tree(
        tmp_path,
        "1sec_segmented_part1/1sec_segmented_part1/V1_1 (1).wav",
        "1sec_segmented_part2/1sec_segmented_part2/V7_1 (20).wav",
        "1sec_segmented_part2/1sec_segmented_part2/V7_1 (21).wav",
        "V1.wav",
    )
    table = "name,Type,Emotion ,f0\n'V1_1 (1).wav',Test,'angry',1\n\"V7_1 (20).wav \",Test,surprised,2\n"
    (root / "ANAD.csv").write_text(table)
    found = scan("anad", root)
    assert found.clips[["emotion", "speaker"]].values.tolist() == [["angry", "V1"], ["surprised", "V7"]]
    assert found.clips["gender"].isna().all()
    reasons = dict(zip(found.rejected["path"].map(lambda p: Path(p).name), found.rejected["reason"], strict=True))
    assert reasons == {"V1.wav": "is not named like V1_1 (1).wav", "V7_1 (21).wav": "has no emotion in ANAD.csv"}
    (root / "ANAD.csv").unlink()
    with pytest.raises(CorpusError, match=r"has no ANAD\.csv"):
        scan("anad", root)


DEMOGRAPHICS = """"ActorID","Age","Sex","Race","Ethnicity"
1001,51,"Male","Caucasian","Not Hispanic"
"""
TABULATED = """"","A","D","F","H","N","S","fileName","numResponses"
"100062",6,2,0,0,1,0,"1001_DFA_ANG_XX",9
"200062",0,9,0,0,0,0,"1001_DFA_ANG_XX",9
"""
VOICE_VOTES = """file,angry,disgust,fearful,happy,neutral,sad
1001_DFA_ANG_XX,6,2,0,0,1,0
"""
HEARD = {"angry": "6", "disgust": "2", "fearful": "0", "happy": "0", "neutral": "1", "sad": "0"}


@pytest.mark.parametrize(
    ("name", "votes"), [("processedResults/tabulatedVotes.csv", TABULATED), ("voice_votes.csv", VOICE_VOTES)]
)
@pytest.mark.parametrize("named", [".", "AudioWAV"])
def test_crema_d_clips_have_audio_only_votes_and_speaker_demographics(
    tmp_path: Path, name: str, votes: str, named: str
) -> None:
    root = _tree(tmp_path, "AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1002_DFA_ANG_XX.wav")
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(votes)
    (root / "VideoDemographics.csv").write_text(DEMOGRAPHICS)
    first, second = scan("crema-d", root / named).clips.to_dict("records")
    assert {emotion: first[f"votes_{emotion}"] for emotion in HEARD} == HEARD
    assert (first["age"], first["race"], first["ethnicity"]) == ("51", "Caucasian", "Not Hispanic")
    assert pd.isna(second["votes_angry"]) and pd.isna(second["age"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("voice_votes.csv", "file,angry\n1,2\n", r"voice_votes\.csv: lacks the columns neutral, happy"),
        ("voice_votes.csv", VOICE_VOTES.replace("6", "many"), "a vote count is not a whole number"),
        ("VideoDemographics.csv", '"', r"VideoDemographics\.csv: is not a readable CSV"),
    ],
)
def test_a_damaged_crema_d_table_raises_an_error_with_the_reason(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    root = _tree(tmp_path, "AudioWAV/1001_DFA_ANG_XX.wav")
    (root / name).write_text(text)
    with pytest.raises(CorpusError, match=message):
        scan("crema-d", root)


def test_crema_d_has_43_female_and_48_male_actors(tmp_path: Path) -> None:
    root = _tree(tmp_path, *(f"{actor}_DFA_NEU_XX.wav" for actor in range(1001, 1092)))
    assert scan("crema-d", root).clips["gender"].value_counts().to_dict() == {"male": 48, "female": 43}


@pytest.mark.parametrize(
    ("corpus", "name", "reason"),
    [
        ("ravdess", "01-01-06-01-02-01-12.wav", "modality 01"),
        ("ravdess", "03-02-06-01-02-01-12.wav", "is song, not speech"),
        ("ravdess", "03-01-09-01-02-01-12.wav", "unknown emotion"),
        ("ravdess", "03-01-01-01-01-01-25.wav", "actor 25"),
        ("ravdess", "my recording.wav", "is not named like"),
        ("crema-d", "1001_DFA_BOR_XX.wav", "is not named like"),
        ("crema-d", "2001_DFA_ANG_XX.wav", "actor 2001"),
        ("emodb", "04a01Fa.wav", "speaker 04"),
        ("tess", "OAF_back_bored.wav", "is not named like"),
        ("savee", "XX/a01.wav", "is not named like"),
        ("emovo", "dis-f4-b1.wav", "is not named like"),
        ("eyase", "Female01/fm01_dis (1).wav", "is not named like"),
        ("urdu", "Angry/A12.wav", "is not named like"),
    ],
)
def test_a_file_that_does_not_fit_its_corpus_is_rejected_with_the_reason(
    tmp_path: Path, corpus: str, name: str, reason: str
) -> None:
    good = {
        "ravdess": "03-01-01-01-01-01-01.wav",
        "crema-d": "1001_DFA_ANG_XX.wav",
        "emodb": "03a01Fa.wav",
        "tess": "OAF_back_angry.wav",
        "savee": "DC_a01.wav",
        "emovo": "dis-f1-b1.wav",
        "eyase": "Female01/fm01_ang (1).wav",
        "urdu": "SM1_F01_A12.wav",
    }
    found = scan(corpus, _tree(tmp_path, name, good[corpus]))
    assert [Path(path).name for path in found.clips["path"]] == [Path(good[corpus]).name]
    assert [Path(path).name for path in found.rejected["path"]] == [Path(name).name]
    assert reason in found.rejected["reason"].iloc[0]


def test_duplicate_recordings_are_rejected(tmp_path: Path) -> None:
    """The distribution of RAVDESS on Kaggle contains a second copy of the whole tree."""
    root = _tree(tmp_path, "Actor_01/03-01-01-01-01-01-01.wav", "Actor_01/03-01-02-01-01-01-01.wav")
    again = root / "audio_speech_actors_01-24" / "Actor_01"
    again.mkdir(parents=True)
    for path in sorted((root / "Actor_01").iterdir()):
        (again / path.name).write_bytes(path.read_bytes())
    found = scan("ravdess", root)
    assert len(found.clips) == 2
    assert found.rejected["reason"].str.contains("is the same recording as").tolist() == [True, True]


def test_a_second_recording_with_the_same_id_is_rejected(tmp_path: Path) -> None:
    root = _tree(tmp_path, "a/03-01-01-01-01-01-01.wav", "b/03-01-01-01-01-01-01.wav")
    found = scan("ravdess", root)
    assert len(found.clips) == 1
    assert "same id" in found.rejected["reason"].iloc[0]


def test_a_folder_of_class_folders_is_a_corpus(tmp_path: Path) -> None:
    root = _tree(tmp_path, "happy/a.wav", "happy/deeper/a.wav", "très triste/b.mp3", "stray.wav", "happy/notes.txt")
    found = scan("folder", root)
    assert found.clips["emotion"].value_counts().to_dict() == {"happy": 2, "très triste": 1}
    assert found.clips["speaker"].isna().all()
    assert found.clips["clip_id"].str.fullmatch(r"[A-Za-z0-9_.=-]+").all()
    assert found.rejected["reason"].tolist() == ["is not inside a class folder; expected <class>/clip.wav"]


def test_a_csv_of_paths_and_labels_is_a_corpus(tmp_path: Path) -> None:
    root = _tree(tmp_path / "wavs", "a.wav", "b.wav", "c.wav", "unlisted.wav")
    table = tmp_path / "clips.csv"
    table.write_text(
        "path,label,speaker,gender\nwavs/a.wav,joy,ann,female\nwavs/./b.wav,grief,bob,\nwavs/c.wav,,bob,\n"
    )
    found = scan("folder", table)
    assert found.clips[["emotion", "speaker"]].values.tolist() == [["joy", "ann"], ["grief", "bob"]]
    assert found.clips["gender"].isna().tolist() == [False, True]
    assert found.rejected["reason"].tolist() == ["has no label in clips.csv"]
    table.write_text("file,label\na.wav,joy\n")
    with pytest.raises(CorpusError, match="needs the columns path and label"):
        scan("folder", table)
    table.write_text("path,label,clip_id,copy,content_mark\nwavs/a.wav,joy,../../x,1,x\n")
    with pytest.raises(CorpusError, match="rename the columns clip_id, content_mark, copy"):
        scan("folder", table)
    table.write_text("path,label\nwavs/a.wav,joy\n,\n,joy\n")
    with pytest.raises(CorpusError, match="row 3 below the first line has no path"):
        scan("folder", table)
    table.write_text("path,label\nwavs/a.wav,joy\n,\n")
    assert len(scan("folder", table).clips) == 1
    table.write_text("path,label\n.,joy\n")
    with pytest.raises(CorpusError, match=r"the path '\.' names no recording"):
        scan("folder", table)
    table.write_text("path,label\nwavs/a.wav,joy,\nwavs/b.wav,grief,\n")
    with pytest.raises(CorpusError, match="more fields than its first line has columns; remove commas"):
        scan("folder", table)
    table.write_text("path,label\nwavs/a.wav,joy\nwavs/./a.wav,joy\n")
    assert scan("folder", table).clips["emotion"].tolist() == ["joy"]
    table.write_text("path,label\nwavs/a.wav,joy\nwavs/./a.wav,grief\n")
    with pytest.raises(CorpusError, match=r"clips\.csv: wavs/a\.wav is listed twice, with different values"):
        scan("folder", table)
    table.write_text("path,label,emotion\nwavs/a.wav,joy,grief\n")
    with pytest.raises(CorpusError, match="has the columns label and emotion"):
        scan("folder", table)
    assert root.exists()


def test_recordings_of_a_csv_that_differ_only_by_suffix_are_all_clips(tmp_path: Path) -> None:
    _tree(tmp_path, "a.wav", "a.flac", "b.wav")
    table = tmp_path / "clips.csv"
    table.write_text("path,label\na.wav,joy\na.flac,grief\nb.wav,joy\n")
    found = scan("folder", table)
    assert len(found.clips) == 3 and not len(found.rejected)
    assert "folder_b" in found.clips["clip_id"].tolist()


def test_names_that_are_not_utf8_and_folders_named_wav_do_not_stop_a_scan(tmp_path: Path) -> None:
    root = _tree(tmp_path, "happy/a.wav", "sad/b.wav")
    Path(os.fsdecode(os.fsencode(root) + b"/sad/\xff.wav")).write_text("c")
    for name in ("happy/x.wav", "sad/y.wav"):
        (root / name).mkdir()
    found = scan("folder", root)
    assert {"a.wav", "b.wav"} <= {Path(path).name for path in found.clips["path"]}
    assert found.rejected["reason"].tolist() == ["has a name that is not UTF-8; rename it"]


def test_a_wrong_folder_or_corpus_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"does not exist; list recordings at addresses in a CSV on this machine"):
        scan("ravdess", Path("s3://bucket/ravdess"))
    with pytest.raises(CorpusError, match="does not exist; name the folder of RAVDESS speech with --source"):
        scan("ravdess", tmp_path / "nowhere")
    with pytest.raises(CorpusError, match=r"has no clip of RAVDESS speech \(1 recordings rejected, such as"):
        scan("ravdess", _tree(tmp_path, "1001_DFA_ANG_XX.wav"))
    with pytest.raises(CorpusError, match="unknown corpus 'iemocap'; choose from synthetic, ravdess"):
        scan("iemocap", tmp_path)


def test_every_corpus_declares_known_emotions() -> None:
    for corpus in CORPORA.values():
        assert set(corpus.emotions) <= set(EMOTIONS)
        assert corpus.licence


def test_labels_and_speakers_ignore_blanks_and_unicode_forms(tmp_path: Path) -> None:
    composed, decomposed = "fr\u00f6hlich", "fro\u0308hlich"
    root = _tree(tmp_path, "happy/a.wav", "happy /b.wav", f"{composed}/c.wav", f"{decomposed}/d.wav", " /e.wav")
    found = scan("folder", root)
    assert found.clips["emotion"].value_counts().to_dict() == {"happy": 2, composed: 2}
    assert found.rejected["reason"].tolist() == ["is in a folder with a blank name"]
    table = tmp_path / "clips.csv"
    table.write_text(
        f"path, label ,speaker\nhappy/a.wav, joy,01\nhappy /b.wav,joy , 01\n {composed}/c.wav ,{composed}, é\n"
        f"{decomposed}/d.wav,{decomposed},e\u0301\nhappy/a.wav,joy , 01\n"
    )
    found = scan("folder", table)
    assert found.clips["emotion"].value_counts().to_dict() == {"joy": 2, composed: 2}
    assert found.clips["speaker"].value_counts().to_dict() == {"01": 2, "é": 2}
    assert all(Path(path).exists() for path in found.clips["path"])


@pytest.mark.parametrize(
    ("labels", "speakers", "message"),
    [
        (("happy", "Happy"), ("a", "b"), r"the labels 'Happy' \(1 clips\) and 'happy' \(1 clips\) differ only by case"),
        (("1", "01"), ("a", "b"), "the labels '01' .* and '1' .* differ only by case or leading zeros"),
        (("happy", "sad"), ("Ann", "ann"), "the speakers 'Ann' .* and 'ann' .* in the CSV"),
        (("happy", "sad"), ("7", "07"), "the speakers '07' .* and '7' .* in the CSV"),
    ],
)
def test_labels_or_speakers_that_differ_only_by_spelling_are_refused(
    tmp_path: Path, labels: tuple[str, str], speakers: tuple[str, str], message: str
) -> None:
    _tree(tmp_path, "a.wav", "b.wav")
    table = tmp_path / "clips.csv"
    table.write_text(f"path,label,speaker\na.wav,{labels[0]},{speakers[0]}\nb.wav,{labels[1]},{speakers[1]}\n")
    with pytest.raises(CorpusError, match=message):
        scan("folder", table)


def test_class_folders_that_differ_only_by_case_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"'Happy' .* and 'happy' .* spell them alike, by renaming the folders"):
        scan("folder", _tree(tmp_path, "happy/a.wav", "Happy/b.wav"))


def test_folders_of_a_split_are_not_taken_as_labels(tmp_path: Path) -> None:
    root = _tree(
        tmp_path, "Train/happy/a.wav", "Train/sad/b.wav", "test/happy/c.wav", "val/d.wav", "e.wav", "notes/read.txt"
    )
    found = scan("folder", root)
    assert found.clips["emotion"].value_counts().to_dict() == {"happy": 2, "sad": 1}
    assert found.rejected["reason"].tolist() == [
        "is not inside a class folder; expected <class>/clip.wav",
        "is not inside a class folder; expected val/<class>/clip.wav",
    ]
    (remark,) = found.remarks
    assert remark.startswith("Train, test, val are taken as parts of a split, and the folders below them as classes")
    _tree(root, "happy/f.wav")
    with pytest.raises(CorpusError, match=r"has Train, test, val, .* beside happy, .* or list the clips in a CSV"):
        scan("folder", root)


def test_hidden_and_macosx_folders_are_ignored(tmp_path: Path) -> None:
    root = _tree(
        tmp_path / ".hidden" / "corpus",
        "happy/a.wav", "sad/b.wav", ".git/c.wav", "happy/.old/d.wav", "__MACOSX/happy/._a.wav", "__MACOSX/happy/e.wav",
    )  # fmt: skip
    found = scan("folder", root)
    assert [Path(path).name for path in found.clips["path"]] == ["a.wav", "b.wav"]
    assert len(found.rejected) == 0


def test_labels_that_are_all_numbers_cause_a_remark(tmp_path: Path) -> None:
    assert scan("folder", _tree(tmp_path, "01/a.wav", "02/b.wav")).remarks == (
        "all labels are numbers (01, 02): are they classes, or speakers?",
    )
    assert scan("folder", _tree(tmp_path, "happy/c.wav")).remarks == ()


@pytest.mark.parametrize(
    ("given", "gender"),
    [("M", "male"), ("f", "female"), (" Male ", "male"), ("FEMALE", "female"), ("Woman", "female"), ("man", "male")],
)
def test_a_csv_may_use_common_words_for_gender(tmp_path: Path, given: str, gender: str) -> None:
    _tree(tmp_path, "a.wav")
    table = tmp_path / "clips.csv"
    table.write_text(f"path,label,gender\na.wav,joy,{given}\n")
    assert scan("folder", table).clips["gender"].tolist() == [gender]
    table.write_text("path,label,gender\na.wav,joy,loud\n")
    with pytest.raises(CorpusError, match=r"the gender of a\.wav is 'loud'; write female or male \(F, M\), or leave"):
        scan("folder", table)


def test_a_duplicate_under_another_label_is_rejected_naming_the_first_label(tmp_path: Path) -> None:
    root = _tree(tmp_path, "happy/a.wav", "sad/b.wav")
    (root / "sad/again.wav").write_bytes((root / "happy/a.wav").read_bytes())
    found = scan("folder", root)
    assert len(found.clips) == 2
    assert found.rejected["reason"].iloc[0].endswith("happy/a.wav, which is labelled happy")
