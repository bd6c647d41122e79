"""The answers of the service, as described in OpenAPI."""

from typing import Any

from pydantic import BaseModel, Field

ANGRY: Any = {"label": "angry", "confidence": 0.83, "probabilities": {"neutral": 0.01, "angry": 0.83, "happy": 0.16}}


class PredictionAnswer(BaseModel):
    """The prediction for one clip or picture."""

    label: str = Field(description="the most likely label, `no speech`, or `unsure`")
    confidence: float = Field(ge=0, le=1, description="probability of the most likely label, or of `no speech`")
    probabilities: dict[str, float] = Field(description="probability of every label, given that there is speech")
    speech: float | None = Field(
        None, description="probability that the clip contains speech; null if there is no speech detector"
    )
    embedding: list[float] | None = Field(None, description="the input of the network's last layer; only on request")

    model_config = {"json_schema_extra": {"examples": [ANGRY]}}


class TickAnswer(BaseModel):
    """A mark on the picture's frequency axis."""

    hz: float
    row: float = Field(description="its row, from 0 for the picture's top row; a fraction between two rows")


class ExplanationAnswer(BaseModel):
    """The prediction for a recording, and which parts of its picture support a label (Grad-CAM)."""

    label: str = Field(description="the most likely label, `no speech`, or `unsure`")
    confidence: float = Field(ge=0, le=1, description="probability of the most likely label, or of `no speech`")
    probabilities: dict[str, float] = Field(description="probability of every label, given that there is speech")
    speech: float | None = Field(
        None, description="probability that the recording contains speech; null if there is no speech detector"
    )
    about: str = Field(description="the label that the map explains")
    picture: str = Field(description="the picture as the network sees it, a PNG in base64")
    heat: str = Field(description="the map, a grey PNG in base64; 255 marks the strongest support for the label")
    width: int = Field(description="width of picture and map, in columns")
    height: int = Field(description="height of picture and map, in rows")
    start_s: float = Field(
        description="time of column 0 in the recording, in seconds; negative if it lies before its start"
    )
    step_s: float = Field(description="time between columns, in seconds")
    columns: tuple[int, int] = Field(
        description="the first and the last column that hold sound; the others are padding"
    )
    frequencies: list[TickAnswer] = Field(description="marks for the frequency axis")


class SegmentAnswer(BaseModel):
    """A segment of a recording."""

    start_s: float = Field(description="start, in seconds")
    end_s: float = Field(description="end, in seconds")
    label: str = Field(description="the most likely label, `unsure`, `no speech`, or `silence`")
    confidence: float | None = Field(
        description="probability of the most likely label, or of `no speech`; null for silence"
    )
    channel: int | None = Field(description="the channel, from 0; null for the mean of all channels")
    probabilities: dict[str, float] = Field(description="probability of every label; empty for silence")
    speech: float | None = Field(
        None, description="probability that the segment contains speech; null if there is no speech detector"
    )


class MomentAnswer(BaseModel):
    """A segment in which one label is very likely."""

    start_s: float
    end_s: float
    label: str
    confidence: float
    channel: int | None


class SummaryAnswer(BaseModel):
    """Summary of a recording."""

    path: str = Field(description="the upload's name")
    duration_s: float
    sound_s: float = Field(description="time with sound, over all channels")
    silence_s: float
    shares: dict[str, float] = Field(description="share of each label, and of `no speech`, in the time with sound")
    strongest: list[MomentAnswer]


class TimelineAnswer(BaseModel):
    """The segments of a recording, and a summary."""

    segments: list[SegmentAnswer]
    summary: SummaryAnswer


class ModelAnswer(BaseModel):
    """The model that answers."""

    name: str = Field(description="its name, for the option `model`")
    models: list[str] = Field(description="names of all models of this service")
    backbone: str
    engine: str = Field(description="what runs the network, and in which precision")
    labels: list[str]
    duration_s: float = Field(description="duration that one picture covers, in seconds")
    temperature: float
    spec: dict[str, Any] = Field(description="how recordings are rendered")
    spec_fingerprint: str
    origin: dict[str, Any] = Field(description="initial weights, data and their licence, split, training, results")
    version: str = Field(description="version of spectro")


class HealthAnswer(BaseModel):
    """The service is alive."""

    status: str


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str = Field(description="what is wrong, and what to do")

    model_config = {"json_schema_extra": {"examples": [{"detail": "clip.wav: is silent"}]}}
