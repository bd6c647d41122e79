import re
from itertools import combinations, product

import pandas as pd
import pytest

from spectro.corpora import splits
from spectro.corpora.splits import LEAKY, LEAKY_COPIES, PARTS, PROTOCOLS, split
from spectro.corpora.table import EMOTIONS
from spectro.errors import SplitError
from spectro.model.metadata import Description, content_of
from tests.conftest import REPOSITORY


def _ravdess() -> pd.DataFrame:
    """Return a clip table of all RAVDESS speech clips, 60 per actor."""
    rows = [
        (f"{actor}-{emotion}-{intensity}-{take}", str(actor), emotion, "male" if actor % 2 else "female", copy)
        for actor in range(1, 25)
        for emotion in EMOTIONS[:8]
        for intensity in ("normal", "strong")[: 1 if emotion == "neutral" else 2]
        for take in range(4)
        for copy in range(2)
    ]
    frame = pd.DataFrame(rows, columns=["clip_id", "speaker", "label", "gender", "copy"])
    return frame.astype({"speaker": "string", "gender": "string"}).assign(corpus="ravdess")


CLIPS = _ravdess()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_speaker_is_in_two_parts_and_every_speaker_is_tested_once(protocol: str) -> None:
    first = split(CLIPS, protocol, 0)
    tested: list[str] = []
    speaker_of = dict(zip(CLIPS["clip_id"], CLIPS["speaker"], strict=True))
    for fold in range(first.folds):
        found = split(CLIPS, protocol, fold)
        for one, other in combinations(PARTS, 2):
            assert not set(found.speakers[one]) & set(found.speakers[other])
        for clip_id, part in found.part.items():
            assert speaker_of[clip_id] in found.speakers[part]
        assert set(found.part) == set(CLIPS["clip_id"])
        assert found.leak == ""
        tested += found.speakers["test"]
    assert sorted(tested, key=int) == [str(actor) for actor in range(1, 25)]


def test_luna_jimenez_uses_the_published_folds() -> None:
    found = split(CLIPS, "luna-jimenez", 0)
    assert found.folds == 5
    assert found.speakers["test"] == ("2", "5", "14", "15", "16")
    assert found.speakers["valid"] == ("3", "6")
    assert split(CLIPS, "luna-jimenez", 4).speakers["test"] == ("1", "4", "9", "22")


def test_emobox_uses_the_published_folds_and_balances_gender_in_validation() -> None:
    found = split(CLIPS, "emobox", 2)
    assert found.folds == 6
    assert found.speakers["test"] == ("8", "9", "19", "23")
    women = [int(actor) % 2 == 0 for actor in found.speakers["valid"]]
    assert len(women) == 3
    assert abs(sum(women) - 1.5) < 1


def test_a_split_does_not_depend_on_the_order_of_clips() -> None:
    shuffled = CLIPS.sample(frac=1.0, random_state=5)
    for protocol in PROTOCOLS:
        assert split(CLIPS, protocol, 1).speakers == split(shuffled, protocol, 1).speakers


def test_leaky_protocols_report_their_leak_and_only_leaky_copies_leaks_copies() -> None:
    found = split(CLIPS, LEAKY, 0)
    assert len(found.part) == CLIPS["clip_id"].nunique()
    assert set(found.speakers["train"]) & set(found.speakers["test"])
    assert "shared between training and test" in found.leak
    shares = pd.Series(found.part).value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=0.01)
    assert shares["valid"] == pytest.approx(0.8 / 7, abs=0.02)
    copied = split(CLIPS, LEAKY_COPIES, 0)
    assert copied.part == found.part
    assert copied.leak == f"augmented copies, if used, include those of test clips, and {found.leak}"
    for one, crossing in ((found, False), (copied, True)):
        train = CLIPS[one.rows(CLIPS, "train", copies=True)]
        assert (set(train["clip_id"]) == set(CLIPS["clip_id"])) is crossing
        assert not one.rows(CLIPS, "train", copies=False)[CLIPS["copy"] > 0].any()
        assert CLIPS[one.rows(CLIPS, "test", copies=True)]["clip_id"].map(one.part).eq("test").all()


def test_speakers_with_the_same_name_in_two_corpora_are_distinct() -> None:
    other = CLIPS.assign(corpus="crema-d", clip_id="c" + CLIPS["clip_id"])
    both = pd.concat([CLIPS, other])
    found = split(both, "loso", 0)
    assert found.folds == 48
    assert found.speakers["test"] == ("crema-d/1",)


def test_the_actors_of_ravdess_speech_and_song_are_the_same_speakers() -> None:
    song = CLIPS.assign(corpus="ravdess-song", clip_id="s" + CLIPS["clip_id"])
    found = split(pd.concat([CLIPS, song]), "luna-jimenez", 0)
    assert found.speakers["test"] == ("2", "5", "14", "15", "16")
    assert split(pd.concat([CLIPS, song]), "loso", 0).folds == 24


@pytest.mark.parametrize(
    ("clips", "protocol", "fold", "message"),
    [
        (CLIPS, "kfold", 0, "unknown protocol 'kfold'; choose from luna-jimenez"),
        (CLIPS, "luna-jimenez", 5, "has folds 0 to 4; fold 5"),
        (CLIPS, "loso", -1, "has folds 0 to 23"),
        (CLIPS.assign(speaker=pd.NA), "loso", 0, "needs every clip's speaker, and 1440 clips"),
        (CLIPS.assign(corpus="crema-d"), "luna-jimenez", 0, "is a protocol of RAVDESS"),
        (
            CLIPS[CLIPS["speaker"] == "1"],
            "luna-jimenez",
            0,
            "no valid speaker is among these clips' speakers; there is 1, too few",
        ),
        (
            CLIPS[CLIPS["speaker"].isin(["1", "2"])],
            "loso",
            0,
            "needs 3 speakers .*; there are 2, too few for an honest split",
        ),
        (CLIPS[CLIPS["speaker"].isin(["1", "2", "3"])], "group-kfold", 0, "needs 6 speakers; there are 3: use loso"),
        (
            CLIPS[(CLIPS["label"] != "sad") | (CLIPS["speaker"] == "2")],
            "luna-jimenez",
            0,
            "no training clip is labelled",
        ),
    ],
    ids=range(9),
)
def test_an_impossible_split_is_refused(clips: pd.DataFrame, protocol: str, fold: int, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        split(clips, protocol, fold)


def test_luna_jimenez_validation_speakers_are_not_test_speakers() -> None:
    for valid, test in zip(splits.LUNA_JIMENEZ_VALID, splits.LUNA_JIMENEZ_TEST, strict=True):
        assert not set(valid) & set(test)


def test_training_speakers_include_those_of_the_starting_weights() -> None:
    def speakers(corpora: list[str], train: list[str], valid: list[str], before: list[str]) -> set[str]:
        speakers = {"train": train, "valid": valid, "test": ["9"]}
        own = {
            "data": {"corpora": corpora, "labels": "emotion"},
            "split": {"protocol": "loso", "fold": 0, "speakers": speakers, "leak": ""},
        }
        shipped = content_of(REPOSITORY / "checkpoints/mobilenet-ravdess")
        return Description.from_dict(shipped | own | {"heard_before": before}, REPOSITORY).training_speakers()

    assert speakers(["ravdess-song"], ["1"], ["2"], ["tess/OAF"]) == {"ravdess/1", "ravdess/2", "tess/OAF"}
    assert speakers(["ravdess", "tess"], ["ravdess/1"], ["tess/OAF"], []) == {"ravdess/1", "tess/OAF"}


def _few(speakers: int, clips: int, rare: int) -> pd.DataFrame:
    """Return clips of some speakers with three labels, the last of which has only `rare` clips in all."""
    rows = [
        (f"{speaker}-{label}-{number}", str(speaker), label)
        for speaker in range(1, speakers + 1)
        for label in ("calm", "happy")
        for number in range(clips)
    ]
    rows += [(f"rare-{number}", str(number % speakers + 1), "sad") for number in range(rare)]
    table = pd.DataFrame(rows, columns=["clip_id", "speaker", "label"])
    return table.assign(corpus="folder", gender=pd.NA, copy=0)


@pytest.mark.parametrize("speakers", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("protocol", [*PROTOCOLS, LEAKY, LEAKY_COPIES])
def test_small_corpora_are_split_or_refused_with_advice(protocol: str, speakers: int) -> None:
    possible = 0
    for clips, rare in product((1, 2, 12), (0, 1, 4, 12)):
        try:
            found = split(_few(speakers, clips, rare), protocol, 0)
        except SplitError as error:
            assert re.search("use|add|record", str(error))
            continue
        possible += 1
        assert all(found.speakers.values())
    leaky, honest = protocol in (LEAKY, LEAKY_COPIES), {"loso": 3, "group-kfold": 6}
    assert bool(possible) is (leaky or speakers >= honest.get(protocol, 99))


@pytest.mark.parametrize("speakers", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_refusal_suggests_only_protocols_that_work(protocol: str, speakers: int) -> None:
    clips = _few(speakers, 12, 0)
    try:
        split(clips, protocol, 0)
    except SplitError as error:
        offered = set(re.findall(r"loso|group-kfold|random-leaky", str(error))) - {protocol}
        assert offered
        for other in offered:
            assert split(clips, other, 0).part


def test_the_error_names_labels_with_too_few_clips_and_their_counts() -> None:
    with pytest.raises(SplitError, match=r"group-kfold makes 5 folds .* but sad has 3; add more, leave the label out"):
        split(_few(6, 2, 3), "group-kfold", 0)
    with pytest.raises(SplitError, match="needs 10 clips of every label, but calm has 6, happy has 6, sad has 3;"):
        split(_few(3, 2, 3), LEAKY, 0)


def test_leading_zeros_of_a_validation_speaker_are_ignored_unless_ambiguous() -> None:
    assert split(CLIPS, "luna-jimenez", 0, ["01", "4"]).speakers["valid"] == ("1", "4")
    padded = CLIPS.assign(speaker=CLIPS["speaker"].str.zfill(3))
    assert split(padded, "loso", 0, ["4", "010"]).speakers["valid"] == ("004", "010")
    both = pd.concat([padded, CLIPS.assign(clip_id="x" + CLIPS["clip_id"])])
    assert split(both, "loso", 0, ["4"]).speakers["valid"] == ("4",)
    with pytest.raises(SplitError, match=r"no clip is of validation speaker 04; .* such as 001$"):
        split(both, "loso", 0, ["04"])


def test_validation_speakers_of_several_corpora_are_named_with_their_corpus() -> None:
    clips = pd.concat([_corpus("emovo", 6), _corpus("savee", 4)])
    assert split(clips, "loso", 0, ["savee/2"]).speakers["valid"] == ("savee/2",)
    with pytest.raises(SplitError, match=r"no clip is of validation speaker 2; .* such as emovo/1"):
        split(clips, "loso", 0, ["2"])
    with pytest.raises(SplitError, match="loso fold 0 tests emovo/1: choose other"):
        split(clips, "loso", 0, ["emovo/1"])


def _corpus(name: str, speakers: int, labels: tuple[str, ...] = ("happy", "sad", "angry")) -> pd.DataFrame:
    rows = [
        (f"{name}-{speaker}-{label}-{take}", str(speaker), label, "female" if speaker % 2 else "male", 0)
        for speaker in range(1, speakers + 1)
        for label in labels
        for take in range(3)
    ]
    frame = pd.DataFrame(rows, columns=["clip_id", "speaker", "label", "gender", "copy"])
    return frame.astype({"speaker": "string", "gender": "string"}).assign(corpus=name)


def _song() -> pd.DataFrame:
    return CLIPS.assign(clip_id="song-" + CLIPS["clip_id"], corpus="ravdess-song")


@pytest.mark.parametrize("protocol", ["luna-jimenez", "emobox"])
def test_a_ravdess_protocol_is_unchanged_where_other_corpora_are_added(protocol: str) -> None:
    alone = split(CLIPS, protocol, 1)
    found = split(pd.concat([CLIPS, _song(), _corpus("savee", 4)], ignore_index=True), protocol, 1)
    own = {clip: part for clip, part in found.part.items() if clip in alone.part}
    assert own == alone.part
    assert {found.part[clip] for clip in _corpus("savee", 4)["clip_id"]} == {"train"}
    assert found.speakers["test"] == tuple(f"ravdess/{name}" for name in alone.speakers["test"])


def test_ravdess_songs_of_held_out_speakers_are_left_out_of_training() -> None:
    found = split(pd.concat([CLIPS, _song()], ignore_index=True), "luna-jimenez", 0)
    singers = {clip.split("-")[1] for clip in found.part if clip.startswith("song-")}
    assert singers == set(found.speakers["train"])
    assert {found.part[clip] for clip in found.part if clip.startswith("song-")} == {"train"}
    merged = found.without_validation()
    assert {merged.part[clip] for clip in merged.part if clip.startswith("song-")} == {"train"}
    assert {clip.split("-")[1] for clip in merged.part if clip.startswith("song-")} == {
        *singers,
        *found.speakers["valid"],
    }
    assert merged.without_validation() == merged


def test_cross_corpus_trains_on_neither_the_test_corpus_nor_its_speakers() -> None:
    everything = pd.concat(
        [CLIPS, _song(), _corpus("crema-d", 20), _corpus("tess", 2), _corpus("savee", 4)], ignore_index=True
    )
    corpus_of = dict(zip(everything["clip_id"], everything["corpus"], strict=True))
    label_of = dict(zip(everything["clip_id"], everything["label"], strict=True))
    for name in ("ravdess", "crema-d", "savee"):
        found = split(everything, "cross-corpus", name)
        assert (found.fold, found.folds) == (name, 5)
        parts = {part: {clip for clip, own in found.part.items() if own == part} for part in PARTS}
        assert {corpus_of[clip] for clip in parts["test"]} == {name}
        groups = {"ravdess", "ravdess-song"} if name == "ravdess" else {name}
        assert not groups & {corpus_of[clip] for clip in parts["train"] | parts["valid"]}
        assert {label_of[clip] for clip in parts["test"]} <= {label_of[clip] for clip in parts["train"]}
        assert not set(found.speakers["train"]) & set(found.speakers["valid"])
        assert {"tess/1", "tess/2"} <= set(found.speakers["train"]), "too few to spare one"
    assert len([one for one in found.speakers["valid"] if one.startswith("crema-d/")]) == 3


def test_a_fold_that_does_not_fit_the_protocol_is_refused() -> None:
    both = pd.concat([CLIPS, _corpus("savee", 4)], ignore_index=True)
    for clips, fold in ((both, "tess"), (both, 0), (CLIPS, "ravdess"), (pd.concat([CLIPS, _song()]), "ravdess")):
        with pytest.raises(SplitError, match="cross-corpus tests on one corpus and trains on others"):
            split(clips, "cross-corpus", fold)
    with pytest.raises(SplitError, match="emobox has numbered folds, from 0; fold 'savee' was requested"):
        split(both, "emobox", "savee")
