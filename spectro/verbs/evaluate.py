"""The evaluate verb: measure a checkpoint and print its figures."""

from spectro.evaluate.evaluate import EvaluateSettings, evaluate
from spectro.files import printable


def run(settings: EvaluateSettings) -> int:
    """Run the verb; returns its exit code."""
    report = evaluate(settings)
    print(
        f"{printable(report['checkpoint'])} on {report['clips']} clips of {len(report['speakers'])} speakers "
        f"({', '.join(report['corpora'])}, {report['part']}; {report['protocol']} fold {report['fold']})"
    )
    for name in ("uar", "wa", "f1"):
        print(
            f"  {name.upper():<4} {report[name]['value']:.3f}   95 % over speakers: {_edges(report[name]['interval'])}"
        )
    if adapted := report.get("transductive"):
        value, edges = adapted["uar"]["value"], _edges(adapted["uar"]["interval"])
        print(f"  transductive (adapted to the speaker's clips): UAR {value:.3f} ({edges})")
    errors = {name: found["ece"] for name, found in report["calibration"].items()}
    print("  ECE  {probabilities:.3f}   without the temperature {without_temperature:.3f}".format(**errors))
    for label, values in report["labels"].items():
        recall, precision = values["recall"]["value"], values["precision"]["value"]
        shown = "   -  " if recall is None else f"{recall:.3f}"
        print(f"  {label:<18} recall {shown}  precision {precision:.3f}  ({values['clips']} clips)")
    if report["leak"]:
        print(f"these figures leak: {report['leak']}")
    elif report["speakers_heard_in_training"]:
        print(f"not new speakers: the network was trained on {', '.join(report['speakers_heard_in_training'])}")
    if count := report.get("adapted_to_recordings"):
        print(
            f"adapted to {count} recordings without labels: the figures are transductive if some are of these speakers"
        )
    print(f"report in {printable(settings.folder)}: metrics.json, predictions.csv and plots")
    return 0


def _edges(interval: list[float | None]) -> str:
    low, high = interval
    return "unknown with one speaker" if low is None or high is None else f"{low:.3f} to {high:.3f}"
