import pandas as pd
import pytest

from spectro.corpora.labels import SCHEMES, label_clips, left_out, tally, votes_for
from spectro.corpora.table import EMOTIONS
from spectro.errors import CorpusError


def _clips(*pairs: tuple[str, str | None], corpus: str = "ravdess") -> pd.DataFrame:
    frame = pd.DataFrame(pairs, columns=["emotion", "gender"], dtype="string")
    return frame.assign(corpus=corpus)


@pytest.mark.parametrize(
    ("scheme", "count", "expected"),
    [
        ("emotion", 8, ["angry", "surprised"]),
        ("gender", 2, ["female", "male"]),
        ("emotion-gender", 16, ["female_angry", "male_surprised"]),
        ("emotion5", 5, ["angry"]),
        ("emotion5-gender", 10, ["female_angry"]),
        ("valence", 3, ["negative", "positive"]),
    ],
)
def test_a_scheme_labels_clips_or_omits_them(scheme: str, count: int, expected: list[str]) -> None:
    labelled, labels = label_clips(_clips(("angry", "female"), ("surprised", "male")), scheme)
    assert labelled["label"].tolist() == expected
    assert len(labels) == count
    assert set(expected) <= set(labels)


def test_labels_depend_on_the_corpus_and_not_on_the_clips_present() -> None:
    _few, labels_of_few = label_clips(_clips(("sad", "male")), "emotion")
    _all, labels_of_all = label_clips(_clips(*((emotion, "male") for emotion in EMOTIONS[:8])), "emotion")
    assert labels_of_few == labels_of_all == EMOTIONS[:8]


def test_a_folders_labels_are_its_classes_with_known_emotions_first() -> None:
    _table, labels = label_clips(_clips(("zeal", None), ("sad", None), ("awe", None), corpus="folder"), "emotion")
    assert labels == ("sad", "awe", "zeal")


def test_a_missing_gender_is_an_error_where_the_scheme_needs_it() -> None:
    with pytest.raises(CorpusError, match="needs every speaker's gender"):
        label_clips(_clips(("sad", None)), "gender")


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(CorpusError, match="unknown label scheme 'arousal'; choose from emotion"):
        label_clips(_clips(("sad", "male")), "arousal")


def test_a_single_label_is_refused() -> None:
    with pytest.raises(CorpusError, match="has 1 label"):
        label_clips(_clips(("zeal", None), corpus="folder"), "emotion")


def test_every_emotion_has_a_valence() -> None:
    assert {SCHEMES["valence"].label(emotion, "") for emotion in EMOTIONS} == {"negative", "neutral", "positive"}


def test_the_tally_lists_labels_with_counts_and_the_number_of_speakers() -> None:
    clips = pd.DataFrame(
        {
            "clip_id": ["a", "a", "b", "c"],
            "corpus": "folder",
            "label": ["joy", "joy", "grief", "joy"],
            "speaker": pd.array(["x", "x", "y", None], dtype="string"),
        }
    )
    assert tally(clips) == "labels: grief 1, joy 2; speakers: 2, and 1 clips without a speaker"
    assert tally(clips.assign(speaker=pd.NA)) == "labels: grief 1, joy 2; speakers: unknown"
    many = pd.DataFrame({"clip_id": range(40), "corpus": "folder", "speaker": "x"}).astype({"clip_id": "string"})
    assert tally(many.assign(label="label " + many["clip_id"])).endswith(", and 10 more labels; speakers: 1")


def test_clips_without_a_label_in_a_scheme_are_told() -> None:
    clips = _clips(("happy", "female"), ("sad", "male"), ("bored", "male"), ("disgust", "male"))
    clips = clips.assign(clip_id=["a", "b", "c", "d"])
    assert left_out(clips, label_clips(clips, "emotion5")[0]) == "; left out: bored 1, disgust 1"
    assert left_out(clips, label_clips(clips, "valence")[0]) == ""


VOTED = _clips(("angry", "female"), ("calm", "male"), ("sad", "male")).assign(
    clip_id=["a", "b", "c"],
    votes_angry=pd.array(["3", "0", None], dtype="string"),
    votes_sad=pd.array(["1", "2", None], dtype="string"),
    votes_calm=pd.array(["0", "4", None], dtype="string"),
)


def test_votes_for_emotions_become_votes_for_labels() -> None:
    labelled, labels = label_clips(VOTED, "emotion")
    assert dict(zip(labels, votes_for(labelled, labels).T.tolist(), strict=True)) == {
        **{label: [0, 0, 0] for label in labels},
        "angry": [3, 0, 0],
        "sad": [1, 2, 0],
        "calm": [0, 4, 0],
    }
    labelled, labels = label_clips(VOTED, "valence")
    assert labels == ("negative", "neutral", "positive")
    assert votes_for(labelled, labels).tolist() == [[4, 0, 0], [2, 4, 0], [0, 0, 0]]
    labelled, labels = label_clips(VOTED, "emotion-gender")
    votes = dict(zip(labels, votes_for(labelled, labels).T.tolist(), strict=True))
    assert votes["female_angry"] == [3, 0, 0] and votes["male_sad"] == [0, 2, 0] and not any(votes["female_calm"])


def test_votes_for_emotions_give_no_votes_for_gender() -> None:
    labelled, labels = label_clips(VOTED, "gender")
    assert not votes_for(labelled, labels).any()


@pytest.mark.parametrize("value", ["many", "-1", "inf", "0.5"])
def test_an_invalid_vote_raises_an_error_that_names_clip_and_value(value: str) -> None:
    clips = VOTED.assign(votes_sad=pd.array(["1", value, None], dtype="string"))
    with pytest.raises(CorpusError, match=f"b: votes_sad is '{value}'; write the number of listeners who chose it"):
        label_clips(clips, "emotion")


def test_a_votes_column_that_names_no_emotion_is_ignored() -> None:
    clips = VOTED.assign(votes_total=pd.array(["n/a", "6", None], dtype="string"))
    labelled, labels = label_clips(clips, "emotion")
    assert labelled["votes_total"][0] == "n/a"
    assert votes_for(labelled, labels)[0].sum() == 4
