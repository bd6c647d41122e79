// Records the microphone as WAV: the service cannot read WebM, the only format of MediaRecorder in many browsers.

export const MOST_S = 1800;
const RAW = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };

/** Record until `stop` or `discard` is called; `onBlock` gets the seconds so far and the loudness, 0 to 1. */
export async function record(onBlock) {
  if (!navigator.mediaDevices || !window.AudioWorkletNode) {
    throw new Error("This browser allows the microphone only on https:// pages and on the same machine; choose a file instead.");
  }
  const stream = await navigator.mediaDevices.getUserMedia({ audio: RAW }).catch((error) => {
    throw new Error(`The microphone cannot be used (${error.message}); allow it in the browser, or choose a file instead.`);
  });
  const context = new AudioContext();
  const blocks = [];
  let samples = 0;
  const end = async () => {
    stream.getTracks().forEach((track) => track.stop());
    if (context.state !== "closed") await context.close();
  };
  try {
    await context.audioWorklet.addModule(new URL("capture.js", import.meta.url));
    const node = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
    context.createMediaStreamSource(stream).connect(node);
    node.port.onmessage = ({ data }) => {
      if (samples >= MOST_S * context.sampleRate) return;
      blocks.push(Int16Array.from(data, (value) => Math.max(-1, Math.min(1, value)) * 32767));
      samples += data.length;
      onBlock(samples / context.sampleRate, Math.max(...data.map(Math.abs)));
    };
  } catch (error) {
    await end();
    throw error;
  }
  return {
    discard: end,
    stop: async () => {
      await end();
      return new File([wav(blocks, samples, context.sampleRate)], "recording.wav", { type: "audio/wav" });
    },
  };
}

/** Return a WAV file of 16-bit blocks of one channel. */
function wav(blocks, samples, rate) {
  const header = new DataView(new ArrayBuffer(44));
  const text = (place, letters) => [...letters].forEach((one, i) => header.setUint8(place + i, one.charCodeAt(0)));
  text(0, "RIFF");
  header.setUint32(4, 36 + 2 * samples, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true);
  header.setUint16(22, 1, true);
  header.setUint32(24, rate, true);
  header.setUint32(28, 2 * rate, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  text(36, "data");
  header.setUint32(40, 2 * samples, true);
  return new Blob([header, ...blocks], { type: "audio/wav" });
}
