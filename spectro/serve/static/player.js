// Plays the recording: a waveform that is a slider, and a button.

import WaveSurfer from "./vendor/wavesurfer.esm.js";
import { clock } from "./words.js";

const HEIGHT = 88; // the page's policy allows only the style sheet for this height
const DECODED_S = 1200; // the samples of longer recordings would take gigabytes; they are played without a waveform
const DECODED_BYTES = 256 * 2 ** 20;
const FLAT = [new Array(1000).fill(0)];

const $ = (id) => document.getElementById(id);

export class Player {
  /** @param onTime called with the position in seconds, whenever it changes */
  constructor(onTime) {
    this.audio = $("audio");
    this.onTime = onTime;
    this.length = 0;
    $("play").addEventListener("click", () => (this.audio.paused ? this.audio.play() : this.audio.pause()));
    $("wave").addEventListener("keydown", (event) => this.#key(event));
    for (const name of ["play", "pause", "ended"]) this.audio.addEventListener(name, () => this.#face());
  }

  /** Load a file; returns its duration in seconds, or null if the browser cannot determine it. */
  async load(file) {
    this.surfer?.destroy();
    URL.revokeObjectURL(this.address);
    const address = URL.createObjectURL(file);
    this.audio.src = this.address = address;
    const seconds = await metadata(this.audio);
    $("unplayable").hidden = seconds !== null;
    $("play").disabled = seconds === null;
    $("wave").hidden = seconds === null;
    if (seconds !== null) await this.#draw(file, seconds);
    if (address === this.address) this.setLength(seconds ?? 0); // and no other file has replaced it
    return seconds;
  }

  /** Set the recording's duration in seconds. */
  setLength(seconds) {
    this.length = seconds;
    $("length").textContent = clock(seconds);
    $("wave").setAttribute("aria-valuemax", seconds.toFixed(1));
    this.#tell(this.audio.currentTime);
  }

  playFrom(seconds) {
    if ($("play").disabled) return;
    this.audio.currentTime = seconds;
    this.audio.play();
  }

  /** Apply the page's current colours. */
  recolour() {
    this.surfer?.setOptions(paint());
  }

  async #draw(file, seconds) {
    this.surfer = WaveSurfer.create({
      container: $("wave"),
      media: this.audio,
      peaks: FLAT, // until the file is decoded; without them wavesurfer.js would fetch the file, which the page's policy forbids
      duration: seconds,
      height: HEIGHT,
      normalize: true,
      dragToSeek: true,
      cursorWidth: 2,
      barWidth: 2,
      barGap: 2,
      barRadius: 2,
      ...paint(),
    });
    this.surfer.on("timeupdate", (now) => this.#tell(now));
    await new Promise((resolve) => this.surfer.once("ready", resolve));
    const { surfer, address } = this;
    const plain = () => surfer === this.surfer && surfer.load(address, FLAT, seconds); // it plays, but browsers cannot decode everything that they play
    if (seconds <= DECODED_S && file.size <= DECODED_BYTES) await surfer.loadBlob(file).catch(plain);
  }

  #tell(now) {
    $("now").textContent = clock(now);
    $("wave").setAttribute("aria-valuenow", now.toFixed(1));
    $("wave").setAttribute("aria-valuetext", `${clock(now)} of ${clock(this.length)}`);
    this.onTime(now);
  }

  #face() {
    $("play").setAttribute("aria-label", this.audio.paused ? "Play" : "Pause");
    $("play").dataset.playing = String(!this.audio.paused);
  }

  #key(event) {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
    const places = { Home: 0, End: this.audio.duration };
    if (event.key === " ") $("play").click();
    else if (event.key in steps) this.audio.currentTime = Math.max(0, this.audio.currentTime + steps[event.key]);
    else if (event.key in places) this.audio.currentTime = places[event.key];
    else return;
    event.preventDefault();
  }
}

function paint() {
  const style = getComputedStyle($("wave"));
  return { waveColor: style.color, progressColor: style.accentColor, cursorColor: style.accentColor };
}

function metadata(audio) {
  return new Promise((resolve) => {
    audio.onloadedmetadata = () => resolve(Number.isFinite(audio.duration) ? audio.duration : null);
    audio.onerror = () => resolve(null);
  });
}
