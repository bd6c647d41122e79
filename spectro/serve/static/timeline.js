// The timeline under the player: one button per segment, on lines of equal duration; the last one takes the rest.

import { SILENCE, clock, make, percent } from "./words.js";

const LINE_S = { wide: 20, narrow: 12 };
const narrow = matchMedia("(width < 44rem)");

export class Timeline {
  /**
   * @param place   the element that contains it
   * @param onPick  called with the segment that was clicked
   */
  constructor(place, onPick) {
    this.place = place;
    this.onPick = onPick;
    this.cursor = make("i", { class: "cursor" });
    this.segments = [];
    narrow.addEventListener("change", () => this.segments.length && this.#draw());
    place.addEventListener("keydown", (event) => this.#key(event));
  }

  show(segments, seconds, colour) {
    Object.assign(this, { segments, seconds, colour, marked: null });
    this.#draw();
  }

  clear() {
    this.segments = [];
    this.place.replaceChildren();
  }

  /** Move the cursor. */
  at(now) {
    this.now = now;
    if (!this.segments.length) return;
    const line = Math.min(this.lines.length - 1, Math.floor(now / this.lineS));
    const { element, start, length } = this.lines[line];
    if (this.cursor.parentElement !== element) {
      element.append(this.cursor);
      const { offsetTop, offsetHeight } = element.parentElement;
      const bottom = offsetTop + offsetHeight - this.place.clientHeight;
      this.place.scrollTop = Math.max(bottom, Math.min(this.place.scrollTop, offsetTop));
    }
    this.cursor.style.left = `${Math.min(100, (100 * (now - start)) / length)}%`;
    const current = this.buttons.find(({ segment }) => segment.start_s <= now && now < segment.end_s)?.segment;
    if (current === this.current) return;
    this.current = current;
    for (const { button, segment } of this.buttons) button.toggleAttribute("data-now", segment === current);
  }

  /** Mark the segment that is explained, given its start. */
  mark(start_s) {
    this.marked = start_s;
    for (const { button, segment } of this.buttons ?? []) {
      button.setAttribute("aria-pressed", String(segment.start_s === start_s));
    }
  }

  #draw() {
    this.lineS = Math.min(this.seconds, narrow.matches ? LINE_S.narrow : LINE_S.wide);
    this.lines = [];
    this.buttons = [];
    this.current = undefined;
    const count = Math.max(1, Math.ceil((this.seconds - 0.05) / this.lineS));
    for (let number = 0; number < count; number += 1) {
      const start = number * this.lineS;
      const length = Math.min(this.lineS, this.seconds - start);
      const element = make("div", { class: "line" });
      element.style.width = `${(100 * length) / this.lineS}%`;
      this.lines.push({ element, start, length });
      this.#fill(element, start, length);
    }
    const rows = this.lines.map(({ element, start }) =>
      make("div", { class: "strip" }, ...(count > 1 ? [make("span", {}, clock(start))] : []), make("div", {}, element)),
    );
    this.place.replaceChildren(...rows);
    this.mark(this.marked);
    this.at(this.now ?? 0);
  }

  #fill(element, start, length) {
    for (const segment of this.segments) {
      if (segment.label === SILENCE || segment.start_s >= start + length || segment.end_s <= start) continue;
      const [left, right] = [Math.max(segment.start_s, start), Math.min(segment.end_s, start + length)];
      const said = `${segment.label}, ${percent(segment.confidence)}, ${clock(segment.start_s)} to ${clock(segment.end_s)}`;
      const button = make("button", { type: "button", class: "stretch", title: said, "aria-label": said });
      button.append(make("span", {}, segment.label));
      button.style.left = `${(100 * (left - start)) / length}%`;
      button.style.width = `${(100 * (right - left)) / length}%`;
      button.style.backgroundColor = this.colour(segment.label);
      button.dataset.start = segment.start_s;
      button.tabIndex = this.buttons.length ? -1 : 0; // one stop for the Tab key; the arrow keys move between segments
      button.addEventListener("click", () => this.onPick(segment));
      button.addEventListener("focus", () => this.#stop(button));
      this.buttons.push({ button, segment });
      element.append(button);
    }
  }

  #stop(here) {
    for (const { button } of this.buttons) button.tabIndex = button === here ? 0 : -1;
  }

  #key(event) {
    const here = this.buttons.findIndex(({ button }) => button === document.activeElement);
    const last = this.buttons.length - 1;
    const places = { ArrowLeft: here - 1, ArrowUp: here - 1, ArrowRight: here + 1, ArrowDown: here + 1, Home: 0, End: last };
    if (here < 0 || !(event.key in places)) return;
    event.preventDefault();
    this.buttons[Math.max(0, Math.min(last, places[event.key]))].button.focus();
  }
}
