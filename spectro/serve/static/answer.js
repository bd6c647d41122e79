// The label with its bars, the table of segments, and the model card.

import { NO_SPEECH, SILENCE, clock, make, percent } from "./words.js";

const $ = (id) => document.getElementById(id);

/** Show a bar for each label's share (0 to 1), the largest first. */
export function bars(shares, colour) {
  const sorted = Object.entries(shares).sort(([, one], [, other]) => other - one);
  $("bars").replaceChildren(
    ...sorted.map(([label, share]) => {
      const fill = make("i", {});
      fill.style.width = `${100 * share}%`;
      fill.style.backgroundColor = colour(label);
      const track = make("div", { class: "track", "aria-hidden": "true" }, fill);
      return make("li", {}, make("span", {}, label), track, make("span", {}, percent(share)));
    }),
  );
}

/** Show the label of a clip, and the next most likely one. */
export function verdict({ label, confidence, probabilities }, colour) {
  const [first, second] = Object.entries(probabilities).sort(([, one], [, other]) => other - one);
  $("asked").textContent = "Prediction for this clip";
  $("label").textContent = label;
  $("closeness").textContent = closeness(label, confidence, first, second);
  bars(probabilities, colour);
}

function closeness(label, confidence, first, second) {
  if (label === NO_SPEECH) return `${percent(confidence)} likely that there is no speech; if there is, most likely ${first[0]}`;
  if (label === first[0]) {
    return `${percent(confidence)} likely${second ? `, followed by ${second[0]} at ${percent(second[1])}` : ""}`;
  }
  return `${first[0]} (${percent(first[1])}) and ${second[0]} (${percent(second[1])}) are too close to call`;
}

/** Show the most frequent label of a long recording, and the shares of all. */
export function course({ shares, sound_s, duration_s }, colour) {
  const [[label]] = Object.entries(shares).sort(([, one], [, other]) => other - one);
  $("asked").textContent = "Most frequent in this recording";
  $("label").textContent = label;
  $("closeness").textContent = `Shares of the ${clock(sound_s)} that contain sound, out of ${clock(duration_s)} in total`;
  bars(shares, colour);
}

/** Show segments as a table; each start is a button. */
export function stretches(segments, colour, onPick) {
  $("rows").replaceChildren(
    ...segments.map((segment) => {
      const silent = segment.label === SILENCE;
      const play = make("button", { type: "button", class: "link" }, clock(segment.start_s));
      play.setAttribute("aria-label", `Play from ${clock(segment.start_s)}, ${segment.label}`);
      play.addEventListener("click", () => onPick(segment));
      const dot = make("i", { class: "dot" });
      if (!silent) dot.style.backgroundColor = colour(segment.label);
      return make(
        "tr",
        silent ? { class: "silent" } : {},
        make("td", {}, play),
        make("td", {}, clock(segment.end_s)),
        make("td", {}, dot, segment.label),
        make("td", {}, silent ? "" : percent(segment.confidence)),
      );
    }),
  );
}

/** Show the data that a model was trained on, and its results. */
export function card(model) {
  const { data = {}, split = {}, estimate = [], metrics = {} } = model.origin;
  const speakers = split.speakers?.train?.length;
  const facts = [
    ["Name", `${model.name} (${model.backbone})`],
    ["Trained on", [data.title ?? "unknown", speakers && `${speakers} speakers`, data.licence].filter(Boolean).join(", ")],
    ["On unseen speakers", figures(estimate, metrics)],
    ["Distinguishes", model.labels.join(", ")],
    ["One picture covers", `${Number(model.duration_s.toFixed(2))} s`],
    ["Runs on", model.engine],
    ["Version", model.version],
  ];
  $("card").replaceChildren(...facts.flatMap(([name, fact]) => [make("dt", {}, name), make("dd", {}, fact)]));
}

function figures([estimate], metrics) {
  if (metrics.test) return `mean recall ${percent(metrics.test.uar)} on ${metrics.test.clips} clips`;
  if (!estimate) return "not measured";
  const range = `${percent(estimate.lowest)} to ${percent(estimate.highest)}`;
  return `mean recall ${percent(estimate.uar)}, ${range} over ${estimate.runs} runs (${estimate.protocol})`;
}
