// Downloads, written in the browser: the server keeps nothing for them.

/** Return the rows of a timeline as CSV; a clip is one row. */
export function csv(rows, labels) {
  const header = ["start_s", "end_s", "label", "confidence", ...labels.map((label) => `p_${label}`)];
  const lines = rows.map((row) => [
    row.start_s,
    row.end_s,
    row.label,
    row.confidence,
    ...labels.map((label) => row.probabilities[label]),
  ]);
  return [header, ...lines].map((line) => `${line.map(cell).join(",")}\r\n`).join("");
}

/** Texts that a spreadsheet would take for a formula; the same as in the tables that the commands write. */
const FORMULA = /^([=@\t\r]|[+-](?!\d+(\.\d+)?$))/;

/** Return a cell; a formula gets a leading apostrophe. */
function cell(value) {
  if (value === null || value === undefined) return "";
  const text = typeof value === "string" && FORMULA.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function download(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
