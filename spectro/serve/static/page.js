// The page: takes a recording, sends it to the service, and shows the answer.

import * as answer from "./answer.js";
import { ask, possible } from "./api.js";
import { cut } from "./cut.js";
import { Picture } from "./picture.js";
import { Player } from "./player.js";
import { MOST_S, record } from "./recorder.js";
import { csv, download } from "./tables.js";
import { Timeline } from "./timeline.js";
import { SILENCE, clock, colours } from "./words.js";

const SEVERAL_PICTURES = 1.5; // a recording longer than this many pictures gets a timeline
const NO_EXPLANATION = [413, 501]; // the model or the recording's size allows none; the answer is shown without it

const $ = (id) => document.getElementById(id);
const picture = new Picture();
const timeline = new Timeline($("timeline"), pick);
const player = new Player((now) => {
  timeline.at(now);
  picture.at(now);
});

let model = null; // the answer of GET /v1/model
let file = null;
let rows = [];
let work = new AbortController();
let explaining = new AbortController();

/** Take a recording, and show its prediction or its timeline. */
async function look(given) {
  file = given;
  begin();
  const { signal } = work;
  $("name").textContent = file.name;
  $("listen").hidden = false;
  try {
    const seconds = await player.load(file);
    await know(signal);
    signal.throwIfAborted();
    const short = seconds !== null && seconds <= SEVERAL_PICTURES * model.duration_s;
    if (short || !(await showCourse(signal))) await showClip(signal);
    signal.throwIfAborted(); // an aborted explanation ends without an error
    end("answer", `${$("asked").textContent}: ${$("label").textContent}. ${$("closeness").textContent}.`);
  } catch (error) {
    if (signal === work.signal) fail(error);
  }
}

/** Load the description of the chosen model. */
async function know(signal) {
  const chosen = $("model").value;
  if (model && (!chosen || chosen === model.name)) return;
  try {
    model = await ask("v1/model", { query: { model: chosen }, signal }, askKey);
  } catch (error) {
    if (model && signal === work.signal) $("model").value = model.name;
    throw error;
  }
  $("model").replaceChildren(...model.models.map((name) => new Option(name, name, false, name === model.name)));
  $("models").hidden = model.models.length < 2;
  answer.card(model);
}

async function showClip(signal) {
  let said = null;
  try {
    said = await send("v1/explain", {}, signal);
  } catch (error) {
    if (!NO_EXPLANATION.includes(error.status)) throw error;
    said = await send("v1/predict/wav", {}, signal);
    picture.without(error.message);
  }
  answer.verdict(said, colours(model.labels));
  timeline.clear();
  rows = [{ ...said, start_s: 0, end_s: Number(player.length.toFixed(3)) }];
  $("timeline").hidden = $("stretches").hidden = true;
  $("answer").hidden = false;
  if (said.picture) await picture.show(said);
}

/** Show a recording's timeline; false if it is no longer than a clip. */
async function showCourse(signal) {
  const { segments, summary } = await send("v1/timeline", {}, signal);
  player.setLength(summary.duration_s);
  if (summary.duration_s <= SEVERAL_PICTURES * model.duration_s) return false;
  if (!summary.strongest.length) {
    throw new Error(`${file.name}: contains ${summary.sound_s ? "no speech" : "nothing but silence"}.`);
  }
  const colour = colours(model.labels);
  rows = segments;
  answer.course(summary, colour);
  answer.stretches(segments, colour, pick);
  $("timeline").hidden = $("stretches").hidden = $("answer").hidden = false;
  timeline.show(segments, summary.duration_s, colour);
  await explain(summary.strongest[0]);
  return true;
}

/** Play a segment, and explain it. */
function pick(segment) {
  player.playFrom(segment.start_s);
  if (segment.label === SILENCE) return;
  const { signal } = work;
  explain(segment).catch((error) => signal === work.signal && fail(error));
}

/** Explain a segment by its middle, as much as fits a picture. */
async function explain({ start_s, end_s, label }) {
  explaining.abort();
  explaining = new AbortController();
  const { signal } = explaining;
  timeline.mark(start_s);
  const [middle, half] = [(start_s + end_s) / 2, model.duration_s / 2];
  const [from, to] = [Math.max(start_s, middle - half), Math.min(end_s, middle + half)];
  const part = await cut(file, from, to);
  const query = { model: model.name, label: model.labels.includes(label) ? label : null };
  if (!part) Object.assign(query, { start_s: from, end_s: to });
  try {
    const said = await ask("v1/explain", { query, file: part ?? file, signal }, askKey);
    if (part) said.start_s += from;
    if (!signal.aborted) await picture.show(said);
  } catch (error) {
    if (error.status) picture.without(error.message);
    else if (error.name !== "AbortError") throw error;
    else if (signal === explaining.signal) picture.without("cancelled"); // and no other explanation has replaced it
  }
}

function send(path, query, signal) {
  const margin = $("margin").valueAsNumber || null;
  const onUpload = (share) => progress(share < 1 ? "Uploading" : "Analysing", share < 1 ? share : null);
  return ask(path, { query: { model: model.name, min_margin: margin, ...query }, file, signal, onUpload }, askKey);
}

function begin() {
  if (!$("recording").hidden) $("discard").click();
  stop();
  [work, explaining] = [new AbortController(), new AbortController()];
  picture.clear();
  $("alert").hidden = $("answer").hidden = $("stretches").hidden = $("timeline").hidden = true;
  $("more").hidden = !model;
  $("cancel").hidden = false;
  document.body.dataset.state = "working";
  progress("Reading", null);
}

function progress(what, share) {
  const words = `${what}…`;
  if ($("status").textContent !== words) $("status").textContent = words; // screen readers announce it, so not at each step
  $("progress").hidden = false;
  if (share === null) $("progress").removeAttribute("value");
  else $("progress").value = share;
}

function stop() {
  work.abort();
  explaining.abort();
}

function end(state, words) {
  $("progress").hidden = $("cancel").hidden = true;
  $("more").hidden = state !== "answer";
  $("status").textContent = words;
  document.body.dataset.state = state;
}

function fail(error) {
  const cancelled = error.name === "AbortError";
  end(model && !$("answer").hidden ? "answer" : "error", cancelled ? "Cancelled." : "");
  if (!cancelled) complain(error);
  if ($("answer").hidden) $("listen").hidden = true;
  if ($("listen").hidden) player.audio.pause();
}

function complain(error) {
  $("alert").textContent = error.message;
  $("alert").hidden = false;
}

function askKey(refused) {
  const dialog = $("ask");
  $("refused").textContent = refused ? "This key was not accepted. Check it and try again." : "";
  $("secret").value = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.onclose = () => reject(new DOMException("cancelled", "AbortError"));
    $("ask-cancel").onclick = () => dialog.close();
    $("ask-form").onsubmit = (event) => {
      event.preventDefault();
      const key = $("secret").value.trim();
      if (!possible(key)) {
        $("refused").textContent = "This cannot be the key: a key has at least one character and no control characters.";
        return;
      }
      resolve(key);
      dialog.close();
    };
  });
}

async function speak() {
  $("alert").hidden = true;
  $("record").disabled = true; // at once; a second click would open the microphone again
  try {
    const running = await record((seconds, loudness) => {
      $("recorded").textContent = clock(seconds);
      $("level").value = loudness;
      if (seconds >= MOST_S) $("done").click();
    });
    $("recording").hidden = false;
    $("done").focus();
    const finish = async (taken) => {
      $("recording").hidden = true;
      $("record").disabled = false;
      $("record").focus();
      if (taken) look(await running.stop());
      else await running.discard();
    };
    $("done").onclick = () => finish(true);
    $("discard").onclick = () => finish(false);
  } catch (error) {
    $("record").disabled = false;
    complain(error);
  }
}

function listenToDrops() {
  const over = (on) => (event) => {
    event.preventDefault();
    document.body.toggleAttribute("data-drag", on && event.dataTransfer.types.includes("Files"));
  };
  document.addEventListener("dragover", over(true));
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? over(false)(event));
  document.addEventListener("drop", (event) => {
    over(false)(event);
    if (event.dataTransfer.files.length) look(event.dataTransfer.files[0]);
  });
}

function listenToTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const show = () => {
    const chosen = localStorage.getItem("spectro-theme") ?? (dark.matches ? "dark" : "light");
    document.documentElement.dataset.theme = chosen;
    $("theme").textContent = chosen === "dark" ? "Light" : "Dark";
    $("theme").setAttribute("aria-label", `Use ${chosen === "dark" ? "light" : "dark"} colours`);
    player.recolour();
  };
  $("theme").addEventListener("click", () => {
    localStorage.setItem("spectro-theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    show();
  });
  dark.addEventListener("change", show);
  show();
}

$("file").addEventListener("change", () => {
  if ($("file").files.length) look($("file").files[0]);
  $("file").value = ""; // so that the same file can be chosen again
});
$("record").addEventListener("click", speak);
$("cancel").addEventListener("click", stop);
$("model").addEventListener("change", () => file && look(file));
$("margin").addEventListener("change", () => $("margin").reportValidity() && file && look(file));
$("csv").addEventListener("click", () => download(`${stem()}-emotions.csv`, csv(rows, model.labels), "text/csv"));
$("json").addEventListener("click", () => {
  const content = { file: file.name, model: model.name, version: model.version, rows: rows.map(plain) };
  download(`${stem()}-emotions.json`, JSON.stringify(content, null, 2), "application/json");
});
listenToDrops();
listenToTheme();

const stem = () => file.name.replace(/\.[^.]*$/, "");
const plain = ({ start_s, end_s, label, confidence, probabilities }) => ({ start_s, end_s, label, confidence, probabilities });
