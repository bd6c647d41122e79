// A stretch of a WAV file as a WAV file, so that a long recording is not uploaded anew for each of its stretches.

const HEADER_BYTES = 2 ** 16; // where the sound begins later, the whole file is sent

/** Return the stretch, a little wider than asked; null where the file is of another kind. */
export async function cut(file, start_s, end_s) {
  const header = new DataView(await file.slice(0, HEADER_BYTES).arrayBuffer());
  const layout = chunks(header);
  if (!layout) return null;
  const { sound, rate, frame } = layout;
  const place = (seconds) => sound + Math.max(0, Math.floor(seconds * rate)) * frame;
  const [from, to] = [place(start_s), Math.min(file.size, place(end_s) + frame)];
  if (to <= from) return null;
  const head = new DataView(header.buffer.slice(0, sound));
  head.setUint32(4, sound - 8 + to - from, true);
  head.setUint32(sound - 4, to - from, true);
  return new File([head, file.slice(from, to)], file.name, { type: "audio/wav" });
}

/** Where the sound of a RIFF WAVE file begins, and how fast it goes; null where its samples are no plain numbers.
 *  The bytes per second are not looked at: writers leave them at 0, or wrong. */
function chunks(view) {
  const name = (at) => String.fromCharCode(...new Uint8Array(view.buffer, at, 4));
  if (view.byteLength < 44 || name(0) !== "RIFF" || name(8) !== "WAVE") return null;
  let format = null;
  for (let at = 12; at + 8 <= view.byteLength; at += 8 + view.getUint32(at + 4, true) + (view.getUint32(at + 4, true) % 2)) {
    if (name(at) === "data") return format && { ...format, sound: at + 8 };
    if (name(at) === "fmt " && at + 24 <= view.byteLength) {
      const [kind, channels, frame, bits] = [8, 10, 20, 22].map((place) => view.getUint16(at + place, true));
      const rate = view.getUint32(at + 12, true);
      const plain = [1, 3, 0xfffe].includes(kind) && frame === channels * Math.ceil(bits / 8);
      format = plain && rate && frame && { rate, frame };
    }
  }
  return null;
}
