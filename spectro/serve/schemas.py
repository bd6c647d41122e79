"""What the service answers, as OpenAPI shows it."""

from typing import Any

from pydantic import BaseModel, Field

ANGRY: Any = {"label": "angry", "confidence": 0.83, "probabilities": {"neutral": 0.01, "angry": 0.83, "happy": 0.16}}


class PredictionAnswer(BaseModel):
    """What the network makes of one clip or picture."""

    label: str = Field(description="the most likely label, `no speech`, or `unsure`")
    confidence: float = Field(ge=0, le=1, description="probability of the most likely label, or of `no speech`")
    probabilities: dict[str, float] = Field(description="probability of every label, if somebody speaks")
    speech: float | None = Field(
        None, description="probability that somebody speaks; null where the network cannot tell"
    )
    embedding: list[float] | None = Field(None, description="what the network's last layer reads, on request")

    model_config = {"json_schema_extra": {"examples": [ANGRY]}}


class TickAnswer(BaseModel):
    """Where a frequency stands on the picture's axis."""

    hz: float
    row: float = Field(description="from 0, the picture's highest row; between two, a fraction")


class ExplanationAnswer(BaseModel):
    """What the network makes of a recording, and which places of its picture speak for a label (Grad-CAM)."""

    label: str = Field(description="the most likely label, `no speech`, or `unsure`")
    confidence: float = Field(ge=0, le=1, description="probability of the most likely label, or of `no speech`")
    probabilities: dict[str, float] = Field(description="probability of every label, if somebody speaks")
    speech: float | None = Field(
        None, description="probability that somebody speaks; null where the network cannot tell"
    )
    about: str = Field(description="the label that the map is about")
    picture: str = Field(description="the picture as the network sees it, a PNG in base64")
    heat: str = Field(description="the map over it, a gray PNG in base64; 255 is the place that speaks most for it")
    width: int = Field(description="columns of picture and map")
    height: int = Field(description="rows of picture and map")
    start_s: float = Field(description="when column 0 is, in seconds of the recording; may lie before its begin")
    step_s: float = Field(description="from one column to the next, in seconds")
    columns: tuple[int, int] = Field(description="the first and the last column that hold sound and no padding")
    frequencies: list[TickAnswer] = Field(description="marks for the axis of frequency")


class SegmentAnswer(BaseModel):
    """A stretch of a recording."""

    start_s: float = Field(description="its begin, in seconds")
    end_s: float = Field(description="its end, in seconds")
    label: str = Field(description="the most likely label, `unsure`, `no speech`, or `silence`")
    confidence: float | None = Field(
        description="probability of the most likely label, or of `no speech`; null for silence"
    )
    channel: int | None = Field(description="the channel, from 0; null for the mean of all")
    probabilities: dict[str, float] = Field(description="probability of every label; empty for silence")
    speech: float | None = Field(
        None, description="probability that somebody speaks; null where the network cannot tell"
    )


class MomentAnswer(BaseModel):
    """A stretch in which one label is very likely."""

    start_s: float
    end_s: float
    label: str
    confidence: float
    channel: int | None


class SummaryAnswer(BaseModel):
    """A recording in short."""

    path: str = Field(description="the upload's name")
    duration_s: float
    sound_s: float = Field(description="time with sound, over all channels")
    silence_s: float
    shares: dict[str, float] = Field(description="share of each label, and of `no speech`, in the time with sound")
    strongest: list[MomentAnswer]


class TimelineAnswer(BaseModel):
    """What is heard in the course of a recording."""

    segments: list[SegmentAnswer]
    summary: SummaryAnswer


class ModelAnswer(BaseModel):
    """The network that answers."""

    name: str = Field(description="what to give as `model`")
    models: list[str] = Field(description="all that can be given")
    backbone: str
    engine: str = Field(description="what computes it, and in which precision")
    labels: list[str]
    duration_s: float = Field(description="seconds of sound that one picture shows")
    temperature: float
    spec: dict[str, Any] = Field(description="how sound is drawn")
    spec_fingerprint: str
    origin: dict[str, Any] = Field(description="starting weights, data and their licence, split, training, figures")
    version: str = Field(description="version of spectro")


class HealthAnswer(BaseModel):
    """The service is alive."""

    status: str


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str = Field(description="what is wrong, and what to do")

    model_config = {"json_schema_extra": {"examples": [{"detail": "clip.wav: is silent"}]}}
