// Cuts a part of a WAV file as a WAV file, so that a long recording is not uploaded again for each segment.

const HEADER_BYTES = 2 ** 16; // if the sound starts later, the whole file is sent

/** Return the part, slightly longer than requested; null for other kinds of files. */
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

/** Return where the sound of a RIFF WAVE file starts, its rate and its frame size; null if its samples are not plain
 *  numbers. The bytes per second are ignored: some writers leave them at 0, or write wrong ones. */
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
