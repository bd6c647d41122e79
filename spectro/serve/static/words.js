// The format of numbers, times and labels everywhere on the page.

/** Paul Tol's light scheme (SRON/EPS/TN/09-002): distinct in all kinds of colour vision, also under black text. */
const COLOURS = ["#77aadd", "#ee8866", "#eedd88", "#ffaabb", "#99ddff", "#44bb99", "#bbcc33", "#aaaa00"];
const OTHER = "#dddddd";

export const SILENCE = "silence";
export const NO_SPEECH = "no speech";

/** Return a function from labels to colours; the order of the labels does not matter. */
export function colours(labels) {
  const sorted = [...labels].sort();
  return (label) => (sorted.includes(label) ? COLOURS[sorted.indexOf(label) % COLOURS.length] : OTHER);
}

export function clock(seconds) {
  const tenths = Math.max(0, Math.round(10 * seconds));
  const whole = Math.floor(tenths / 10);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const rest = `${String(whole % 60).padStart(2, "0")}.${tenths % 10}`;
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

export const percent = (share) => `${Math.round(100 * share)} %`;

/** Make an element; strings are inserted as text, never as markup. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
