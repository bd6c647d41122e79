// The spectrogram as the network sees it, without its padding, overlaid with the evidence for a label.

import { clock, make } from "./words.js";

const INFERNO = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
const OPACITY = 0.7;
const MARK_PX = 48; // least distance between the marks of the time axis; half of it on the frequency axis
const DIGIT_PX = 10; // width per digit of a mark late in a long recording, including the gap to the next

const $ = (id) => document.getElementById(id);

export class Picture {
  constructor() {
    $("explained").addEventListener("change", () => {
      $("heat").hidden = !$("explained").checked;
      $("key").hidden = $("strongest").hidden = $("heat").hidden;
    });
  }

  /** Show an answer of /v1/explain. */
  async show(answer) {
    const [first, last] = answer.columns;
    const count = last - first + 1;
    this.left = answer.start_s + (first - 0.5) * answer.step_s;
    this.length = count * answer.step_s;
    const [picture, heat] = await Promise.all([pixels(answer.picture), pixels(answer.heat)]);
    put($("picture"), picture, first, count);
    put($("heat"), coloured(heat), first, count);
    $("figure").hidden = $("switch").hidden = false;
    $("unexplained").hidden = true;
    this.#axes(answer);
    const place = strongest(heat, first, count);
    const where = place && `strongest near ${clock(answer.start_s + place.x * answer.step_s)}, ${hertz(place.y, answer)}`;
    $("about").textContent = `Evidence for ${answer.about}`;
    $("strongest").textContent = where ? `Grad-CAM: ${where}` : `Grad-CAM: no evidence for ${answer.about}`;
    $("picture").setAttribute(
      "aria-label",
      `Spectrogram from ${clock(Math.max(0, this.left))} to ${clock(this.left + this.length)}; ${where ? "" : "no "}evidence for ${answer.about}${where ? ` is ${where}` : ""}`,
    );
  }

  /** Clear the figure, so that no old one is shown beside a new answer. */
  clear() {
    this.left = this.length = NaN;
    $("seen").hidden = $("unexplained").hidden = true;
    $("figure").hidden = $("switch").hidden = false;
    $("about").textContent = "Evidence";
    $("strongest").textContent = "";
    $("picture").removeAttribute("aria-label");
    for (const part of ["picture", "heat"]) $(part).width = 0;
    for (const axis of ["frequencies", "times"]) $(axis).replaceChildren();
  }

  /** Show why there is no explanation. */
  without(reason) {
    $("about").textContent = "Evidence";
    $("figure").hidden = $("switch").hidden = true;
    $("unexplained").textContent = `No explanation: ${reason}`;
    $("unexplained").hidden = false;
  }

  at(now) {
    const share = (now - this.left) / this.length;
    $("seen").hidden = !(share >= 0 && share <= 1);
    $("seen").style.left = `${100 * share}%`;
  }

  #axes(answer) {
    const digits = (this.left + this.length).toFixed(2).length;
    const room = $("plot").clientWidth / Math.max(MARK_PX, DIGIT_PX * digits);
    const step = [0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10].find((one) => this.length / one <= room) ?? 30;
    const times = [];
    for (let at = Math.ceil(this.left / step) * step; at <= this.left + this.length + 1e-9; at += step) {
      const tick = make("span", {}, `${Number(at.toFixed(2))}`);
      tick.style.left = `${(100 * (at - this.left)) / this.length}%`;
      times.push(tick);
    }
    $("times").replaceChildren(...times, make("b", {}, "seconds"));
    const apart = (answer.height * MARK_PX) / 2 / $("plot").clientHeight;
    const shown = [];
    for (const mark of answer.frequencies) if (!shown.length || shown.at(-1).row - mark.row >= apart) shown.push(mark);
    const frequencies = shown.map(({ hz, row }) => {
      const tick = make("span", {}, hz >= 1000 ? `${hz / 1000}k` : `${hz}`);
      tick.style.top = `${(100 * (row + 0.5)) / answer.height}%`;
      return tick;
    });
    $("frequencies").replaceChildren(make("b", {}, "Hz"), ...frequencies);
  }
}

async function pixels(png) {
  const image = new Image();
  image.src = `data:image/png;base64,${png}`;
  await image.decode();
  const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

function put(canvas, data, first, count) {
  canvas.width = count;
  canvas.height = data.height;
  canvas.getContext("2d").putImageData(data, -first, 0, first, 0, count, data.height);
}

function coloured(heat) {
  const data = new ImageData(heat.width, heat.height);
  for (let at = 0; at < data.data.length; at += 4) {
    const value = heat.data[at] / 255;
    const place = Math.min(value * (INFERNO.length - 1), INFERNO.length - 1.001);
    const [low, high, share] = [INFERNO[Math.floor(place)], INFERNO[Math.floor(place) + 1], place % 1];
    for (let band = 0; band < 3; band += 1) data.data[at + band] = low[band] + share * (high[band] - low[band]);
    data.data[at + 3] = 255 * OPACITY * Math.sqrt(value);
  }
  return data;
}

function strongest(heat, first, count) {
  let best = null;
  for (let y = 0; y < heat.height; y += 1) {
    for (let x = first; x < first + count; x += 1) {
      const value = heat.data[4 * (y * heat.width + x)];
      if (value > (best?.value ?? 0)) best = { x, y, value };
    }
  }
  return best;
}

/** Return the frequency of a row, interpolated between the axis's marks. */
function hertz(row, { frequencies }) {
  const above = frequencies.findLast((one) => one.row >= row) ?? frequencies[0];
  const below = frequencies.find((one) => one.row < row) ?? frequencies.at(-1);
  const share = above.row === below.row ? 0 : (above.row - row) / (above.row - below.row);
  return `about ${Number((above.hz + share * (below.hz - above.hz)).toPrecision(2)).toLocaleString("en")} Hz`;
}
